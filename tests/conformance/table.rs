//! The table of all cases, `docs/conformance.md`, and checks that it is complete.
//!
//! [`STATUSES`] lists the statuses of each function, as `abi/SPEC.md` specifies them. The cases must test exactly
//! these.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    fs,
};

use tollgate_abi::{Function, fast, proxy_wasm, wasi};

use super::{
    files, languages,
    memory::{self, ALLOCATING},
    script::{Case, Kind, OLD, Operand},
};

/// The statuses of each Proxy-Wasm and fast-lane function. InvalidMemoryAccess is implied for every function with an
/// address. A function that returns a number has Ok here.
const STATUSES: &[(&str, &str)] = &[
    ("proxy_log", "Ok BadArgument"),
    ("proxy_get_log_level", "Ok"),
    ("proxy_get_current_time_nanoseconds", "Ok"),
    ("proxy_set_tick_period_milliseconds", "Ok"),
    ("proxy_get_buffer_bytes", "Ok NotFound BadArgument InternalFailure"),
    ("proxy_get_buffer_status", "Ok NotFound BadArgument"),
    ("proxy_set_buffer_bytes", "Ok NotFound BadArgument"),
    ("proxy_get_header_map_size", "Ok BadArgument"),
    ("proxy_get_header_map_pairs", "Ok BadArgument InternalFailure"),
    ("proxy_set_header_map_pairs", "Ok BadArgument"),
    ("proxy_get_header_map_value", "Ok NotFound BadArgument InternalFailure"),
    ("proxy_add_header_map_value", "Ok BadArgument"),
    ("proxy_replace_header_map_value", "Ok BadArgument"),
    ("proxy_remove_header_map_value", "Ok BadArgument"),
    ("proxy_continue_stream", "Ok BadArgument"),
    ("proxy_close_stream", "Ok BadArgument"),
    ("proxy_get_status", "Ok InternalFailure"),
    ("proxy_send_local_response", "Ok BadArgument"),
    ("proxy_http_call", "Ok BadArgument InternalFailure"),
    ("proxy_grpc_call", "Ok ParseFailure InternalFailure"),
    ("proxy_grpc_stream", "Ok ParseFailure InternalFailure"),
    ("proxy_grpc_send", "Ok NotFound BadArgument"),
    ("proxy_grpc_cancel", "Ok NotFound"),
    ("proxy_grpc_close", "Ok NotFound"),
    ("proxy_set_shared_data", "Ok CasMismatch InternalFailure"),
    ("proxy_get_shared_data", "Ok NotFound InternalFailure"),
    ("proxy_register_shared_queue", "Ok BadArgument InternalFailure"),
    ("proxy_resolve_shared_queue", "Ok NotFound"),
    ("proxy_enqueue_shared_queue", "Ok NotFound"),
    ("proxy_dequeue_shared_queue", "Ok NotFound Empty InternalFailure"),
    ("proxy_define_metric", "Ok BadArgument InternalFailure"),
    ("proxy_record_metric", "Ok NotFound"),
    ("proxy_increment_metric", "Ok NotFound BadArgument"),
    ("proxy_get_metric", "Ok NotFound BadArgument"),
    ("proxy_get_property", "Ok NotFound InternalFailure"),
    ("proxy_set_property", "Ok"),
    ("proxy_call_foreign_function", "Ok NotFound BadArgument InternalFailure"),
    ("proxy_set_effective_context", "Ok BadArgument"),
    ("proxy_done", "NotFound"),
    ("proxy_get_configuration", "Ok InternalFailure"),
    ("proxy_continue_request", "Ok"),
    ("proxy_continue_response", "Ok"),
    ("proxy_clear_route_cache", "Ok"),
    ("subscribe", "Ok BadArgument"),
    ("config_error", "Ok InternalFailure"),
    ("header_intern", "Ok BadArgument InternalFailure"),
    ("header_get", "Ok NotFound BadArgument"),
    ("header_get_many", "Ok BadArgument"),
    ("header_set", "Ok NotFound BadArgument"),
    ("header_add", "Ok NotFound BadArgument"),
    ("header_remove", "Ok NotFound BadArgument"),
    ("source_address", "Ok NotFound BadArgument"),
    ("route_define", "Ok NotFound BadArgument ParseFailure InternalFailure"),
    ("route_select", "Ok NotFound BadArgument"),
    ("route_clear", "Ok NotFound"),
    ("cluster_exists", "Ok BadArgument"),
    ("variant_exists", "Ok BadArgument"),
    ("bucket_define", "Ok BadArgument ParseFailure InternalFailure"),
    ("bucket_take", "Ok BadArgument"),
    ("limit_define", "Ok BadArgument InternalFailure"),
    ("limit_acquire", "Ok NotFound BadArgument InternalFailure"),
    ("limit_release", "Ok BadArgument"),
    ("timer_set", "Ok NotFound InternalFailure"),
    ("flag_set", "Ok NotFound BadArgument"),
    ("log_field", "Ok NotFound BadArgument InternalFailure"),
    ("shared_get", "Ok NotFound"),
    ("shared_set", "Ok BadArgument CasMismatch InternalFailure"),
    ("shared_delete", "Ok NotFound BadArgument CasMismatch"),
    ("state_get", "Ok NotFound"),
    ("state_set", "Ok NotFound BadArgument InternalFailure"),
    ("state_delete", "Ok NotFound"),
    ("metadata_get", "Ok NotFound"),
    ("metadata_set", "Ok NotFound BadArgument InternalFailure"),
    ("metadata_delete", "Ok NotFound"),
    ("now", "Ok"),
    ("random", "Ok"),
];

/// Behaviour that case files cannot test, because the module does not survive it, is not even loaded, or because only
/// other modules are affected; and the tests that cover it.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("proc_exit", "the instance fails", "proc_exit_ends_the_instance_and_nothing_else"),
    ("config_error", "Ok; 64 of them", "configuration_error_is_reported_with_its_location"),
    ("route_define", "InternalFailure after 2^20", "ids_are_limited"),
    ("every function", "called in every callback", "every_function_in_every_callback"),
    (
        "every function",
        "called by the start function, and by the allocator within a function",
        "every_function_before_the_start_and_within_the_allocator",
    ),
    ("every callback", "it traps", "trap_in_each_callback_fails_the_instance"),
    ("every callback", "it divides by zero", "filters_that_divide_by_zero"),
    ("every callback", "it reads outside of its memory", "filters_that_read_out_of_bounds"),
    ("every callback", "it calls an undefined table element", "filters_that_call_an_undefined_element"),
    ("every callback", "it never returns", "filters_that_never_return"),
    ("every callback", "it recurses endlessly", "filters_that_recurse_endlessly"),
    ("every callback", "its memory grows to the limit", "filters_that_exhaust_their_memory"),
    ("memory", "the module continues after `memory.grow` has failed", "a_filter_that_is_denied_memory_can_continue"),
    ("allocator", "it traps, never returns, or calls a host function that calls it", "failing_allocators_are_handled"),
    (
        "every function",
        "the same garbage in all arguments, so that all ranges overlap",
        "garbage_in_all_arguments_is_rejected",
    ),
    (
        "every function",
        "called during configuration, in a tick and for a request",
        "bad_addresses_and_lengths_are_rejected",
    ),
    ("functions for streams", "called at the wrong time", "calls_at_the_wrong_time_are_rejected"),
    ("encoded maps", "wrong counts and lengths", "malformed_maps_are_rejected"),
    ("headers", "40 000 of them", "headers_beyond_a_maps_capacity_are_rejected"),
    (
        "start",
        "trap, endless loop, recursion, memory, tables, data",
        "traps_in_other_start_callbacks_prevent_the_start",
    ),
    ("exports", "callbacks and allocators of wrong types or missing", "callbacks_of_wrong_types_are_rejected"),
    ("exports", "the marker of an unsupported version", "unsupported_version_is_named"),
    (
        "proxy_on_request_headers",
        "it pauses and waits for the body under `stop_all`: a hint is logged",
        "stop_all_delivers_nothing_until_the_filter_resumes",
    ),
    ("other streams", "held by the instance that fails", "requests_held_by_a_failed_filter_follow_its_policy"),
    ("other streams", "while there is no instance", "requests_without_an_instance_follow_the_policy"),
    ("the next stream", "after the first failure", "the_request_after_the_first_failure_uses_a_spare_instance"),
];

/// The files with these tests.
const TESTS: &[&str] = &[
    include_str!("special.rs"),
    include_str!("../end_to_end/containment.rs"),
    include_str!("../end_to_end/containment/crowd.rs"),
    include_str!("../end_to_end/containment/pointers.rs"),
    include_str!("../end_to_end/containment/start.rs"),
    include_str!("../end_to_end/bodies/held.rs"),
    include_str!("../../proxy/src/wasm/instance/compiled.rs"),
    include_str!("../../proxy/src/wasm/hostcalls/fast.rs"),
];

/// Columns of the first table. Proxy-Wasm's other statuses (SerializationFailure, Unimplemented) are never returned.
const COLUMNS: &[&str] = &[
    "Ok",
    "NotFound",
    "BadArgument",
    "ParseFailure",
    "InvalidMemoryAccess",
    "Empty",
    "CasMismatch",
    "InternalFailure",
];

/// Callbacks that are never made.
const NEVER: &[&str] = &["proxy_on_foreign_function"];

/// Returns all cases, including the generated ones.
fn all() -> Vec<Case> {
    let cases = |file: super::script::File| {
        let more = memory::cases(&file);
        file.cases.into_iter().chain(more)
    };
    files().into_iter().flat_map(cases).collect()
}

/// Returns the names of a function's statuses that the cases test; a number counts as Ok.
fn looked_for(function: &Function, cases: &[Case]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for statement in cases.iter().flat_map(|case| &case.phases).flat_map(|phase| &phase.statements) {
        let status = match &statement.kind {
            Kind::Compare(Operand::Call(f, _), _, Operand::Value(word)) if f.name == function.name => {
                let word = word.trim_start_matches('-');
                let by_number = proxy_wasm::Status::ALL.iter().find(|(s, _)| (*s as i32).to_string() == word);
                let generated = statement.line > 1000 || ALLOCATING.contains(&f.name);
                match by_number {
                    Some((_, name)) if generated && word != "0" && word != "1" => *name,
                    _ if COLUMNS.contains(&word) => word,
                    _ => "Ok",
                }
            }
            Kind::Let(_, Operand::Call(f, _)) | Kind::Do(Operand::Call(f, _)) if f.name == function.name => "Ok",
            Kind::Raw(code) if code.contains(&format!("(call ${})", function.name)) => "Ok",
            _ => continue,
        };
        found.insert(status.to_owned());
    }
    found
}

fn has_address(function: &Function) -> bool {
    function.params.iter().any(|(name, _)| name.ends_with("_ptr") || name.ends_with("_out"))
}

fn promised(function: &Function) -> BTreeSet<String> {
    let row = STATUSES.iter().find(|(name, _)| *name == function.name);
    let (_, statuses) = row.unwrap_or_else(|| panic!("{} is missing in STATUSES", function.name));
    let address = has_address(function).then_some("InvalidMemoryAccess");
    statuses.split(' ').chain(address).map(str::to_owned).collect()
}

/// Iterates over the functions with statuses.
fn functions() -> impl Iterator<Item = &'static Function> {
    proxy_wasm::HOSTCALLS.iter().chain(OLD).chain(fast::HOSTCALLS)
}

#[test]
fn every_status_of_every_function_has_a_case() {
    let (cases, mut wrong) = (all(), Vec::new());
    for function in functions() {
        let (promised, mut found) = (promised(function), looked_for(function, &cases));
        let elsewhere = ELSEWHERE.iter().filter(|(name, ..)| *name == function.name);
        found.extend(
            elsewhere.filter_map(|(_, what, _)| COLUMNS.iter().find(|c| what.starts_with(*c))).map(|c| (*c).into()),
        );
        if promised != found {
            wrong.push(format!("{}: listed {promised:?}, tested {found:?}", function.name));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

const SPECIFICATION: &str = include_str!("../../abi/SPEC.md");

/// Parses the functions in the tables of the specification, with the statuses that their rows name. Rows of Proxy-Wasm
/// functions list status numbers in their last cell; rows of the fast lane name them.
fn specification() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut found = BTreeMap::new();
    for line in SPECIFICATION.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
        let told = cells[cells.len() - 1];
        let named = |(status, name): &(proxy_wasm::Status, &'static str)| {
            let number = (*status as i32).to_string();
            (told.contains(name) || told.split([':', ',', ';']).any(|word| word.trim() == number)).then_some(*name)
        };
        let statuses: BTreeSet<_> = proxy_wasm::Status::ALL.iter().filter_map(named).collect();
        for name in cells[0].split('`').skip(1).step_by(2) {
            found.insert(name.split('(').next().expect("a name"), statuses.clone());
        }
    }
    found
}

#[test]
fn specification_agrees_with_the_table() {
    let (specified, mut wrong) = (specification(), Vec::new());
    for function in functions() {
        match specified.get(function.name) {
            None if SPECIFICATION.contains(&format!("`{}", function.name)) => {}
            None => wrong.push(format!("{} is not in the specification", function.name)),
            Some(told) if told.iter().any(|status| !promised(function).contains(*status)) => {
                wrong.push(format!("{}: specified {told:?}, listed {:?}", function.name, promised(function)));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_function_and_every_callback_has_a_case() {
    let cases = all();
    let stubs = wasi::STUBS.iter().map(|(f, _)| f);
    let callbacks = proxy_wasm::CALLBACKS.iter().chain(fast::CALLBACKS);
    for f in functions().chain(wasi::HOSTCALLS).chain(stubs).chain(callbacks) {
        let elsewhere = ELSEWHERE.iter().any(|(name, ..)| *name == f.name) || NEVER.contains(&f.name);
        assert!(elsewhere || cases.iter().any(|case| case.function == f.name), "{} has no case", f.name);
    }
    let mut names: Vec<String> = cases.iter().map(Case::id).collect();
    names.sort();
    names.windows(2).for_each(|two| assert_ne!(two[0], two[1], "duplicate name"));
    for (.., test) in ELSEWHERE {
        assert!(TESTS.iter().any(|file| file.contains(&format!("fn {test}("))), "no test is named {test}");
    }
}

#[test]
fn generated_table_is_up_to_date() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md");
    let table = render();
    if env::var_os("UPDATE").is_some() {
        fs::write(file, &table).expect("cannot write the table");
    }
    let there = fs::read_to_string(file).unwrap_or_default();
    assert!(
        there == table,
        "docs/conformance.md is out of date: run UPDATE=1 cargo test -p tollgate --test conformance"
    );
}

const INTRODUCTION: &str = "# Conformance of the ABI

[`abi/SPEC.md`](../abi/SPEC.md) specifies the contract with filters. Each statement of the contract has a case, and the tests run
each case against the shipped proxy, over sockets. This file is generated from the cases
(`UPDATE=1 cargo test -p tollgate --test conformance`), and a test checks that it is up to date.

Cases run in modules generated from [case files](../tests/conformance/cases) (the column WAT: direct calls of host functions) and,
if an SDK can express them, in modules written with SDKs that are not specific to Tollgate.
[`tests/conformance/README.md`](../tests/conformance/README.md) describes the protocol between the tests and these modules.
";

fn render() -> String {
    let (cases, languages) = (all(), languages::all());
    let mut out = INTRODUCTION.to_owned();
    out += "\n## Modules\n\n| module | cases |\n|---|---:|\n";
    let _ = writeln!(out, "| WAT | {} |", cases.len());
    for language in &languages {
        let _ = writeln!(out, "| {} | {} |", language.title, language.cases.len());
    }
    out += "\n## Statuses\n\n`✓`: a case tests this status. `–`: the function does not have this status. \
        SerializationFailure and\nUnimplemented are never returned. For a function that returns a number, this is Ok.\n\n";
    let _ = writeln!(out, "| function | {} |", COLUMNS.join(" | "));
    let _ = writeln!(out, "|---|{}", ":-:|".repeat(COLUMNS.len()));
    for function in functions() {
        let promised = promised(function);
        let cells: Vec<&str> = COLUMNS.iter().map(|c| if promised.contains(*c) { "✓" } else { "–" }).collect();
        let _ = writeln!(out, "| `{}` | {} |", function.name, cells.join(" | "));
    }
    let is_in = |case: &Case, all: &[Function]| all.iter().any(|f| f.name == case.function);
    let sections: [(&str, Vec<&Case>); 4] = [
        ("Callbacks", cases.iter().filter(|c| c.function.contains("_on_")).collect()),
        ("Proxy-Wasm functions", of(&cases, &|c| is_in(c, proxy_wasm::HOSTCALLS) || is_in(c, OLD))),
        ("The fast lane", of(&cases, &|c| is_in(c, fast::HOSTCALLS))),
        ("WASI", of(&cases, &|c| is_in(c, wasi::HOSTCALLS) || wasi::STUBS.iter().any(|(f, _)| f.name == c.function))),
    ];
    for (title, mut cases) in sections {
        cases.sort_by_key(|case| (position(&case.function), case.name != "ok"));
        let titles: Vec<&str> = languages.iter().map(|l| l.title).collect();
        let _ = writeln!(out, "\n## {title}\n\n| function | case | callbacks | WAT | {} |", titles.join(" | "));
        let _ = writeln!(out, "|---|---|---|:-:|{}", ":-:|".repeat(languages.len()));
        let mut last = "";
        for case in cases {
            let function = if last == case.function { String::new() } else { format!("`{}`", case.function) };
            last = &case.function;
            let mark = |has: bool| if has { "✓" } else { "·" };
            let cells: Vec<_> = languages.iter().map(|l| mark(l.cases.contains(&case.id()))).collect();
            let name = match case.name.as_str() {
                "memory" => "each address and length out of range".to_owned(),
                "allocator" => "an allocator without memory, or out of range".to_owned(),
                name => name.replace('-', " "),
            };
            let _ = writeln!(out, "| {function} | {name} | {} | ✓ | {} |", case.when(), cells.join(" | "));
        }
    }
    out += "\n## Modules that fail, or are hostile\n\nBehaviour that a module does not survive, and its effects on others, are \
        covered by the end-to-end tests.\n\n| function or part | behaviour | test |\n|---|---|---|\n";
    for (what, how, test) in ELSEWHERE {
        let _ = writeln!(out, "| `{what}` | {how} | `{test}` |");
    }
    out
}

fn of<'a>(cases: &'a [Case], wanted: &dyn Fn(&Case) -> bool) -> Vec<&'a Case> {
    cases.iter().filter(|case| wanted(case)).collect()
}

/// Returns a function's position in the contract.
fn position(name: &str) -> usize {
    let stubs = wasi::STUBS.iter().map(|(f, _)| f);
    let callbacks = proxy_wasm::CALLBACKS.iter().chain(fast::CALLBACKS);
    let mut all = functions().chain(wasi::HOSTCALLS).chain(stubs).chain(callbacks);
    all.position(|f| f.name == name).unwrap_or(usize::MAX)
}
