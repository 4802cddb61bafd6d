//! Tests of the checks themselves: a test whose program is missing must not pass silently, and the instruction baseline
//! must not creep.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// The directory of the scripts.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_test_whose_program_is_missing_fails_or_is_counted() {
    let dir = TempDir::new().expect("a folder");
    let (log, not_run) = (dir.path().join("log"), dir.path().join("not-run"));
    fs::write(&not_run, "").expect("a file");
    let mut test = Command::new(env::current_exe().expect("this program"));
    test.args(["--exact", "ca::openssl_accepts_certificates_signed_on_the_command_line"]);
    test.env("PATH", "/nowhere").env("TOLLGATE_NOT_RUN", &not_run).env("TOLLGATE_REQUIRE_TOOLS", "1");
    let output = test.output().expect("it runs");
    let said = text(&output.stdout);
    assert!(said.contains("openssl is missing; tests/interop/setup.sh brings it here"), "{said}");
    assert!(!output.status.success());
    assert_eq!(fs::read_to_string(&not_run).expect("a file"), "");

    let output = test.env_remove("TOLLGATE_REQUIRE_TOOLS").output().expect("it runs");
    fs::write(&log, &output.stdout).expect("a file");
    let summary = Command::new(format!("{SCRIPTS}/summary.sh")).args([&log, &not_run]).output().expect("it runs");
    let counted = "0 passed, 0 failed, 0 ignored, 1 not run, missing: openssl (1)\n";
    assert_eq!(text(&summary.stdout), counted, "{}", text(&summary.stderr));

    // A step of `tests/all.sh` is not a test, so the number of passed tests is unchanged.
    fs::write(&not_run, "valgrind\tinstructions\n").expect("a file");
    let summary = Command::new(format!("{SCRIPTS}/summary.sh")).args([&log, &not_run]).output().expect("it runs");
    let counted = "1 passed, 0 failed, 0 ignored, 1 not run, missing: valgrind (1)\n";
    assert_eq!(text(&summary.stdout), counted, "{}", text(&summary.stderr));
}

#[test]
fn the_instruction_baseline_changes_in_separate_commits() {
    const BASELINE: &str = "proxy/benches/instructions.txt";
    let dir = TempDir::new().expect("a folder");
    let origin = dir.path().join("origin");
    let run = |folder: &Path, program: &str, args: &[&str]| -> Output {
        let mut command = Command::new(program);
        let author = ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
        command.current_dir(folder).args(args).envs(author.map(|name| (name, "test")));
        command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
    };
    let git = |folder: &Path, args: &[&str]| {
        let output = run(folder, "git", args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    };
    let commit = |subject: &str, files: &[&str]| {
        for file in files {
            let path = origin.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, subject).expect("a file");
        }
        git(&origin, &["add", "--all"]);
        git(&origin, &["commit", "--quiet", "--message", subject]);
    };
    let check = |folder: &Path| {
        let output = run(folder, "tests/baseline.sh", &[]);
        (output.status.success(), text(&output.stderr))
    };
    fs::create_dir_all(origin.join("tests")).expect("a folder");
    fs::copy(format!("{SCRIPTS}/baseline.sh"), origin.join("tests/baseline.sh")).expect("the script");
    git(&origin, &["init", "--quiet"]);
    commit("before there is a rule", &["proxy/src/lib.rs", BASELINE]);
    commit("code", &["proxy/src/lib.rs"]);
    commit("a baseline of its own", &[BASELINE, "proxy/benches/pieces.rs"]);
    assert_eq!(check(&origin), (true, String::new()));
    commit("both at once", &["abi/src/lib.rs", BASELINE]);
    commit("more code", &["proxy/src/lib.rs"]);
    commit("another baseline", &[BASELINE]);
    let (is_right, said) = check(&origin);
    assert!(!is_right && said.contains("both at once\n    abi/src/lib.rs\n"), "{said}");

    // A shallow clone reports how many commits were checked.
    for (depth, passes) in [("1", true), ("4", false)] {
        let clone = dir.path().join(depth);
        let from = format!("file://{}", origin.display());
        git(dir.path(), &["clone", "--quiet", "--depth", depth, &from, clone.to_str().expect("a path")]);
        let (is_right, said) = check(&clone);
        assert_eq!(is_right, passes, "{depth}: {said}");
        assert!(!passes || said.contains("only 1 commits were checked"), "{said}");
    }
}
