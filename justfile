# `just` lists the scripts of this repository, including the steps of continuous integration. Recipes call scripts, so that nothing is
# defined twice.

_list:
    @just --list --unsorted

# Run everything that must pass, as continuous integration does (`--install` first installs missing programs, as root)
all *ARGS:
    tests/all.sh {{ARGS}}

# Check format and lints
lint:
    tests/lint.sh

# Check licences, bans, sources and advisories of dependencies
deny:
    tests/deny.sh

# Bring the programs and modules that tests use (`--install`: with apt-get, as root)
setup *ARGS:
    tests/interop/setup.sh {{ARGS}}
    tests/conformance/setup.sh

# Compile all filters to WebAssembly
filters:
    cargo filters

# Run one end-to-end test, or all whose names contain a word
e2e *NAME:
    cargo test -p tollgate --test end_to_end {{NAME}}

# Count instructions against the baseline
instructions *ARGS:
    tests/instructions.sh {{ARGS}}

# Fuzz a target under libFuzzer
fuzz NAME SECONDS="60":
    tests/fuzz/run.sh {{NAME}} {{SECONDS}}

# Mutation testing: find changes of these files or folders with which all unit tests still pass
mutants +PATHS:
    tests/mutants.py {{PATHS}}

# Compare with nginx, HAProxy and Envoy
peers *ARGS:
    tests/peers/run.sh {{ARGS}}

# Measure with thousands of clusters, routes and listeners
scale *ARGS:
    tests/scale/run.sh {{ARGS}}

# Measure with upstreams that are slow, fail, hang, restart or are overloaded
resilience *ARGS:
    tests/resilience/run.sh {{ARGS}}

# Start the proxy with three upstreams
quickstart *ARGS:
    examples/quickstart.sh {{ARGS}}

# Build a release with profile-guided optimisation
pgo *ARGS:
    examples/pgo.sh {{ARGS}}
