//! Golden tests of the interfaces that users rely on and the compiler does not check: names and types, not wording.
//! Each test compares one interface with a golden text in this folder, which is only changed deliberately
//! (`UPDATE_GOLDEN=1`). Interfaces that only a running proxy shows are compared in `tests/end_to_end/golden.rs`, the
//! ABI in `abi/tests/golden.rs`.

mod compare;
mod events;
mod public;

use std::{fmt::Write, fs, path::Path, process::Command};

use clap::Arg;
use serde_json::Value;

use self::compare::{compare, shape};

/// Runs `tollgate` in the repository's root. Returns its exit status and its standard output.
fn tollgate(line: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = command.args(line.split_whitespace()).current_dir(root).env_remove("TOLLGATE_LOG").output();
    let output = output.expect("tollgate can be run");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A valid configuration, one with an unused filter, an invalid one, cases, and a file that is not a module.
const INPUTS: [(&str, &str); 6] = [
    (
        "right.yaml",
        "listeners: [{name: l, address: '127.0.0.1:8080', chain: [f]}]
filters: [{name: f, wasm: 'builtin:fault'}]",
    ),
    (
        "warns.yaml",
        "listeners: [{name: l, address: '127.0.0.1:8080', chain: [f]}]
filters: [{name: f, wasm: 'builtin:fault'}, {name: g, wasm: 'builtin:fault'}]",
    ),
    ("wrong.yaml", "listenrs: []"),
    ("passes.yaml", "cases: [{name: passes, steps: [{request: GET /}]}]"),
    (
        "fails.yaml",
        "cases:
- {name: passes, steps: [{request: GET /}]}
- {name: fails, steps: [{request: GET /, expect: {response: {status: 201}}}]}",
    ),
    ("no.wasm", "no module"),
];

/// Runs commands in which `DIR` stands for a folder with the inputs.
fn with_inputs(mut look: impl FnMut(&dyn Fn(&str) -> (Option<i32>, String))) {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, content) in INPUTS {
        fs::write(dir.path().join(name), content).expect("a file can be written");
    }
    look(&|line| tollgate(&line.replace("DIR", dir.path().to_str().expect("a path of text"))));
}

#[test]
fn configuration_keys_types_defaults_and_bounds_are_unchanged() {
    fn without_words(schema: &mut Value) {
        if let Value::Object(members) = schema {
            // A key with this name has a schema, not a text.
            members.retain(|key, value| key != "description" || !value.is_string());
            members.values_mut().for_each(without_words);
        } else if let Value::Array(elements) = schema {
            elements.iter_mut().for_each(without_words);
        }
    }
    let mut schema = serde_json::to_value(tollgate::config::schema()).expect("the schema is JSON");
    without_words(&mut schema);
    compare("schema.json", &format!("{schema:#}\n"));
}

#[test]
fn commands_and_options_are_unchanged() {
    let mut command = tollgate::cli::command();
    command.build();
    let mut text = String::new();
    render(&command, "tollgate", &mut text);
    compare("cli.txt", &text);
}

fn render(command: &clap::Command, path: &str, text: &mut String) {
    let _ = writeln!(text, "{path}");
    command.get_arguments().for_each(|arg| _ = writeln!(text, "    {}", described(arg)));
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        render(command, &format!("{path} {}", command.get_name()), text);
    }
}

/// Formats an argument: its names, its value, and its constraints.
fn described(arg: &Arg) -> String {
    let mut words = Vec::new();
    words.extend(arg.get_short_and_visible_aliases().into_iter().flatten().map(|short| format!("-{short}")));
    words.extend(arg.get_long_and_visible_aliases().into_iter().flatten().map(|long| format!("--{long}")));
    if arg.get_action().takes_values() {
        words.extend(arg.get_value_names().into_iter().flatten().map(|name| format!("<{name}>")));
        let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if !values.is_empty() {
            words.push(values.join("|"));
        }
    }
    if arg.is_required_set() {
        words.push("required".to_owned());
    }
    if matches!(arg.get_action(), clap::ArgAction::Append | clap::ArgAction::Count) {
        words.push("repeated".to_owned());
    }
    words.extend(arg.get_env().map(|name| format!("[env: {}]", name.display())));
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        words.push(format!("[default: {}]", defaults.join(" ")));
    }
    words.join(" ")
}

#[test]
fn exit_codes_are_unchanged() {
    let lines = [
        ("", 2),
        ("--version", 0),
        ("version", 0),
        ("nonsense", 2),
        ("schema", 0),
        ("completions bash", 0),
        ("completions nonsense", 2),
        ("check", 2),
        ("check DIR/right.yaml", 0),
        ("check DIR/warns.yaml", 0),
        ("check DIR/wrong.yaml", 1),
        ("check DIR/wrong.yaml --json", 1),
        ("check DIR/missing.yaml", 1),
        ("run", 2),
        ("run DIR/wrong.yaml", 1),
        ("run DIR/missing.yaml", 1),
        ("new", 2),
        ("new DIR/right.yaml", 1),
        ("inspect builtin:fault", 0),
        ("inspect DIR/no.wasm", 1),
        ("inspect DIR/missing.wasm", 1),
        ("test builtin:fault DIR/passes.yaml", 0),
        ("test builtin:fault DIR/fails.yaml", 1),
        ("test builtin:fault DIR/wrong.yaml", 1),
        ("test builtin:fault DIR/fails.yaml --only nonsense", 1),
        ("bench", 2),
        ("bench chain DIR/right.yaml -n 10", 0),
        ("bench chain DIR/wrong.yaml", 1),
        ("bench load http://127.0.0.1:1/", 2),
        ("bench load http://127.0.0.1:1/ --rate 1", 1),
        ("ca", 2),
        ("ca show DIR/ca", 1),
        ("ca init --dir DIR/ca", 0),
        ("ca init --dir DIR/ca", 1),
        ("ca show DIR/ca", 0),
        ("ca token --dir DIR/ca", 0),
        ("ca token --dir DIR/ca --ttl nonsense", 2),
        ("ca issue --dir DIR/ca --spiffe spiffe://mesh.local/web --out DIR/", 0),
        ("ca issue --dir DIR/ca --spiffe spiffe://other/web --out DIR/", 1),
        ("ca rotate --dir DIR/ca", 0),
        ("ca rotate switch --dir DIR/ca", 1),
    ];
    with_inputs(|run| lines.iter().for_each(|(line, code)| assert_eq!(run(line).0, Some(*code), "tollgate {line}")));
}

#[test]
fn json_output_of_commands_is_unchanged() {
    let lines = [
        "check --json DIR/right.yaml",
        "check --json DIR/warns.yaml",
        "check --json DIR/wrong.yaml",
        "inspect --json builtin:fault",
        "inspect --json builtin:router",
        "test --json builtin:fault DIR/fails.yaml",
        "bench chain --json -n 10 DIR/right.yaml",
        "ca issue --json --dir DIR/ca --spiffe spiffe://mesh.local/web --dns web.test --ip 127.0.0.1 --out DIR/",
        "ca show --json DIR/ca",
    ];
    let mut text = String::new();
    with_inputs(|run| {
        assert_eq!(run("ca init --dir DIR/ca").0, Some(0));
        for line in lines {
            let printed = run(line).1;
            let document = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("tollgate {line}: {e}: {printed}"));
            let _ = write!(text, "$ tollgate {line}\n{}\n", shape(&document));
        }
    });
    compare("commands.txt", &text);
}

#[test]
fn access_log_fields_and_their_order_are_unchanged() {
    let names = tollgate::observe::access_log::FIELDS.iter().map(|field| format!("{}\n", field.name));
    compare("access_log.txt", &names.collect::<String>());
}

#[test]
fn response_details_are_unchanged() {
    let mut words: Vec<String> =
        tollgate::observe::detail::ALL.iter().map(|detail| format!("{}\n", detail.text())).collect();
    words.sort();
    compare("details.txt", &words.concat());
}

#[test]
fn log_events_and_their_fields_are_unchanged() {
    compare("log.txt", &events::all());
}

#[test]
fn public_paths_of_the_sdk_are_unchanged() {
    compare("sdk.txt", &public::paths(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/src")));
}
