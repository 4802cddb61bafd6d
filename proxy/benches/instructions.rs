//! Counts with valgrind the instructions that each step of serving a request executes. Unlike times, the counts are the
//! same on a noisy machine as on a quiet one. `tests/instructions.sh` builds and runs it; it fails if a piece has grown by more than 2 % over the committed
//! baseline, `instructions.txt`. `UPDATE=1` rewrites the baseline.
//!
//! The program starts itself again under callgrind. There it calls one function before and one after each piece, at which callgrind
//! dumps, per thread, the instructions executed since the previous dump. So nothing else is counted: neither the
//! startup, nor the WebAssembly compiler, nor the thread that ticks the guests' clock.
//!
//! The counts depend on the processor only where code checks for its features: memcpy and similar functions in the C library,
//! and code compiled from WebAssembly. valgrind presents its own processor to both, which is the same on every host with AVX2.

mod pieces;

use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail, ensure};

use pieces::Piece;

// As in the proxy.
#[global_allocator]
static ALLOCATOR: tollgate::alloc::Mimalloc = tollgate::alloc::Mimalloc;

/// Runs of a piece before it counts, so that connections are open and tables have grown.
const WARM_UP: u32 = 100;
/// Counted runs of a piece.
const TIMES: u32 = 400;
/// The allowed difference from the baseline, in percent.
const TOLERANCE: f64 = 2.0;

/// The argument of the process under callgrind.
const INNER: &str = "--under-callgrind";

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

fn main() -> ExitCode {
    let inner = env::args().any(|arg| arg == INNER);
    match if inner { count(&mut pieces::all()) } else { compare() } {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the pieces in the process under callgrind, and prints their names.
fn count(pieces: &mut [Piece]) -> anyhow::Result<()> {
    for piece in pieces {
        run(piece, WARM_UP);
        piece_begins();
        run(piece, TIMES);
        piece_ends();
        println!("{}", piece.name);
    }
    Ok(())
}

/// The dump before this function covers code outside of pieces, and is ignored.
#[inline(never)]
fn piece_begins() {
    black_box(1);
}

/// The dump before this function covers the piece.
#[inline(never)]
fn piece_ends() {
    black_box(2);
}

fn run(piece: &mut Piece, times: u32) {
    (0..times).for_each(|_| (piece.run)());
}

/// Counts the instructions, and compares them with the baseline.
fn compare() -> anyhow::Result<()> {
    Command::new("valgrind").arg("--version").output().context("cannot run valgrind (a Debian package)")?;
    let counted = counted()?;
    let compiler = compiler();
    if env::var_os("UPDATE").is_some_and(|v| !v.is_empty()) {
        fs::write(BASELINE, written(&counted, &compiler)).with_context(|| format!("cannot write {BASELINE}"))?;
        println!("{BASELINE} has been rewritten.");
        return Ok(());
    }
    let text = fs::read_to_string(BASELINE).with_context(|| format!("cannot read {BASELINE}"))?;
    let (baseline, by) = read(&text)?;
    let mut wrong = Vec::new();
    println!("{:40} {:>12} {:>12} {:>9}", "instructions per run", "baseline", "now", "change");
    for (name, now) in &counted {
        let Some(before) = baseline.get(name) else {
            wrong.push(format!("`{name}` is not in the baseline"));
            continue;
        };
        let change = (now / before - 1.0) * 100.0;
        println!("{name:40} {before:>12.0} {now:>12.0} {change:>+8.1}%");
        if change > TOLERANCE {
            wrong.push(format!("`{name}` has grown by {change:.1} %"));
        } else if change < -TOLERANCE {
            println!("    Less than the baseline: UPDATE=1 tests/instructions.sh records it.");
        }
    }
    let gone = baseline.keys().filter(|name| !counted.iter().any(|(counted, _)| counted == *name));
    wrong.extend(gone.map(|name| format!("`{name}` was not counted")));
    if wrong.is_empty() {
        return Ok(());
    }
    let wrong = wrong.join("\n  ");
    if by != compiler {
        let mismatch =
            format!("cannot compare: the baseline was built with {by}, this build with {compiler}:\n  {wrong}");
        ensure!(env::var_os("TOLLGATE_REQUIRE_TOOLS").is_none(), "{mismatch}");
        println!("skipped: {mismatch}");
        return Ok(());
    }
    bail!(
        "{wrong}\nIf the increase is justified, run UPDATE=1 tests/instructions.sh. Run callgrind_annotate on the files in {} to see where it is.",
        folder()?.display()
    )
}

/// The folder for callgrind's output, next to this program.
fn folder() -> anyhow::Result<PathBuf> {
    let program = env::current_exe()?;
    Ok(program.ancestors().nth(2).context("cannot find the folder of this program")?.join("callgrind"))
}

/// The instructions per run of each piece.
fn counted() -> anyhow::Result<Vec<(String, f64)>> {
    let folder = folder()?;
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--smc-check=all-non-file", "--separate-threads=yes", "--quiet"]);
    valgrind.args(["--dump-before=*piece_begins*", "--dump-before=*piece_ends*"]);
    valgrind.arg(format!("--callgrind-out-file={}", folder.join("out").display()));
    let output = valgrind.arg(env::current_exe()?).arg(INNER).output().context("cannot run valgrind")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind: {}\n{stderr}", output.status);
    eprint!("{stderr}");
    let names = String::from_utf8(output.stdout)?;
    // One file is from before each piece, the next one from after it.
    names.lines().zip((2..).step_by(2)).map(|(name, n)| Ok((name.to_owned(), summary(&folder, n)?))).collect()
}

/// The instructions that the main thread has executed between dumps `n - 1` and `n`, per run.
fn summary(folder: &Path, n: u32) -> anyhow::Result<f64> {
    let file = folder.join(format!("out.{n}-01"));
    let text = fs::read_to_string(&file).with_context(|| format!("callgrind did not write {}", file.display()))?;
    let mut lines = text.lines();
    let ends = lines.any(|line| line.starts_with("desc: Trigger: --dump-before=") && line.contains("piece_ends"));
    ensure!(ends, "{} is not from the end of a piece", file.display());
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<f64>().ok());
    Ok(total.with_context(|| format!("no total in {}", file.display()))? / f64::from(TIMES))
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or("an unknown compiler".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn written(counted: &[(String, f64)], compiler: &str) -> String {
    let lines = counted.iter().map(|(name, count)| format!("{count:.0}\t{name}\n"));
    let head =
        "# Instructions for each piece, run once; see instructions.rs. UPDATE=1 tests/instructions.sh writes this.\n";
    format!("{head}# {compiler}\n{}", lines.collect::<String>())
}

/// The counts by piece, and the compiler that built them.
fn read(text: &str) -> anyhow::Result<(BTreeMap<String, f64>, String)> {
    let compiler = text.lines().filter_map(|line| line.strip_prefix("# ")).nth(1).unwrap_or_default();
    let figure = |line: &str| {
        let (count, name) = line.split_once('\t').with_context(|| format!("{BASELINE}: `{line}`"))?;
        anyhow::Ok((name.to_owned(), count.parse()?))
    };
    let figures = text.lines().filter(|line| !line.starts_with('#')).map(figure).collect::<anyhow::Result<_>>()?;
    Ok((figures, compiler.to_owned()))
}
