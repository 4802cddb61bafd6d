//! Tests of the documentation: marked configurations pass `tollgate check`, and the tables are complete.
//!
//! A block's info string marks it: `yaml title=config` is a whole file, `yaml title=filter:router` is the value of a
//! built-in filter's `config:`.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tollgate::builtins;

/// The clusters that filter blocks may name.
const CLUSTERS: [&str; 5] = ["web", "api", "api-next", "recorder", "auth"];

/// The least number of whole configurations; fewer mean that blocks are no longer found.
const LEAST_CONFIGS: usize = 3;

struct Block {
    /// The block's file and the line of its fence.
    place: String,
    kind: Kind,
    text: String,
}

enum Kind {
    Config,
    Filter(String),
}

/// Returns the marked blocks of a Markdown text.
fn blocks(name: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let title = info.split_whitespace().find_map(|word| word.strip_prefix("title="));
        let mut text = String::new();
        for (line, _) in lines.by_ref().take_while(|(line, _)| !line.trim_start().starts_with("```")) {
            text.push_str(line);
            text.push('\n');
        }
        let Some(title) = title else { continue };
        let place = format!("{name}:{number}");
        let kind = match title.split_once(':') {
            None if title == "config" => Kind::Config,
            Some(("filter", filter)) => Kind::Filter(filter.to_owned()),
            _ => panic!("{place}: `{title}` is neither `config` nor `filter:NAME`"),
        };
        found.push(Block { place, kind, text });
    }
    found
}

/// Wraps a filter's configuration in a whole one.
fn around(filter: &str, config: &str) -> String {
    let mut file = format!(
        "listeners: [{{name: l, address: \"127.0.0.1:8080\", chain: [f]}}]\n\
         filters:\n- name: f\n  wasm: builtin:{filter}\n  config:\n"
    );
    config.lines().for_each(|line| writeln!(file, "    {line}").unwrap());
    file.push_str("clusters:\n");
    CLUSTERS.iter().for_each(|name| writeln!(file, "- {{name: {name}}}").unwrap());
    file
}

/// Writes the files that blocks with TLS refer to.
fn write_certificates(dir: &Path) {
    let pair = rcgen::generate_simple_self_signed(["web".to_owned()]).unwrap();
    fs::create_dir_all(dir.join("tls")).unwrap();
    let files = [
        ("server.pem", pair.cert.pem()),
        ("server.key", pair.signing_key.serialize_pem()),
        ("ca.pem", pair.cert.pem()),
    ];
    files.iter().for_each(|(name, text)| fs::write(dir.join("tls").join(name), text).unwrap());
    // The join token only has to exist.
    fs::write(dir.join("web.token"), "token").unwrap();
}

/// Returns the root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns all pages for readers: at the root, in `docs/`, and the specification.
fn documents() -> Vec<PathBuf> {
    let entries = ["", "docs"].into_iter().flat_map(|folder| fs::read_dir(root().join(folder)).expect("a folder"));
    let entries = entries.map(|entry| entry.expect("a file").path());
    let mut all: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    all.push(root().join("abi/SPEC.md"));
    all.sort();
    all
}

#[test]
fn configurations_in_the_documentation_are_accepted() {
    let dir = std::env::temp_dir().join(format!("tollgate-docs-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    write_certificates(&dir);
    let (mut configs, mut filters, mut wrong) = (0, Vec::new(), String::new());
    for path in documents() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for (i, block) in blocks(&name, &fs::read_to_string(&path).unwrap()).into_iter().enumerate() {
            let text = match block.kind {
                Kind::Config => {
                    configs += 1;
                    block.text
                }
                Kind::Filter(filter) => {
                    let text = around(&filter, &block.text);
                    filters.push(filter);
                    text
                }
            };
            let file = dir.join(format!("{name}-{i}.yaml"));
            fs::write(&file, text).unwrap();
            let mut check = Command::new(env!("CARGO_BIN_EXE_tollgate"));
            // The compiled filters are cached across blocks.
            let output = check.arg("check").arg(&file).env("XDG_CACHE_HOME", dir.join("cache")).output().unwrap();
            if !output.status.success() {
                writeln!(wrong, "{}\n{}", block.place, String::from_utf8_lossy(&output.stderr)).unwrap();
            }
        }
    }
    fs::remove_dir_all(&dir).unwrap();
    assert!(wrong.is_empty(), "blocks that `tollgate check` rejects:\n\n{wrong}");
    assert!(configs >= LEAST_CONFIGS, "only {configs} whole configurations were found");
    for filter in builtins::NAMES {
        assert!(filters.iter().any(|f| f == filter), "no block was found for the filter `{filter}`");
    }
}

#[test]
fn marked_blocks_are_found_and_others_are_not() {
    let text =
        "a\n```yaml title=config\na: 1\nb: 2\n```\n```console\n$ x\n```\n```yaml title=filter:router\nc: 3\n```\n";
    let found = blocks("x.md", text);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].place.as_str(), found[0].text.as_str()), ("x.md:2", "a: 1\nb: 2\n"));
    assert!(matches!(&found[1].kind, Kind::Filter(name) if name == "router"));
}

/// Returns the text of the operations guide.
fn operating() -> String {
    fs::read_to_string(root().join("docs/operating.md")).expect("docs/operating.md")
}

/// Returns the texts in backticks in the first cells of table rows.
fn in_first_cells(text: &str) -> Vec<&str> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// Returns the first cells of the tables with this header.
fn in_tables<'t>(text: &'t str, head: &str) -> Vec<&'t str> {
    let tables = text.split(head).skip(1);
    tables.flat_map(|rest| in_first_cells(rest.split("\n\n").next().unwrap_or_default())).collect()
}

/// Returns the constant part of a listed detail: `rate_limited` of `rate_limited[NAME]`.
fn constant(listed: &str) -> &str {
    listed.split(|c: char| c == '[' || c.is_ascii_uppercase()).next().unwrap_or_default()
}

/// Returns all string literals in the proxy's code, including unit tests.
fn literals() -> Vec<String> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of code") {
            let path = entry.expect("a file").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a file of code");
                found.extend(text.split('"').skip(1).map(str::to_owned));
            }
        }
    }
    found
}

#[test]
fn every_detail_that_the_proxy_writes_is_in_the_table() {
    let text = operating();
    let listed = in_first_cells(&text);
    for detail in tollgate::observe::detail::ALL {
        assert!(listed.contains(&detail.text()), "docs/operating.md has no row for the detail `{}`", detail.text());
    }
}

#[test]
fn every_detail_of_the_sdk_and_the_standard_filters_is_in_the_table_and_every_one_in_it_is_written() {
    let text = operating();
    let listed = in_tables(&text, "| details | |\n");
    let root = root();
    let mut files = vec![root.join("sdk/src/message/reply.rs")];
    for filter in builtins::NAMES {
        let sources = fs::read_dir(root.join("filters").join(filter).join("src")).expect("a filter's code");
        files.extend(sources.map(|entry| entry.expect("a file").path()));
    }
    let mut known: Vec<String> = tollgate::observe::detail::ALL.iter().map(|detail| detail.text().to_owned()).collect();
    let count = known.len();
    for file in files {
        let code = fs::read_to_string(&file).expect("a file of code");
        // `.details("word")`, `details: format!("word[…]")`, and the details of failed calls.
        let given = ["details(\"", "details: format!(\"", "(503, \"", "(504, \"", "details = String::from(\""];
        for word in given.iter().flat_map(|before| code.split(before).skip(1)) {
            let word = word.split(['"', '[']).next().unwrap_or_default();
            known.push(word.to_owned());
            let known = listed.iter().any(|listed| constant(listed) == word);
            assert!(known, "docs/operating.md has no row for `{word}` of {}", file.display());
        }
    }
    assert!(known.len() > count + 10, "only {} were found", known.len() - count);
    for listed in listed {
        assert!(
            known.iter().any(|known| known == constant(listed)),
            "docs/operating.md lists `{listed}`, which no code writes"
        );
    }
}

#[test]
fn every_metric_is_in_a_table_and_every_one_in_a_table_exists() {
    let text = operating();
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let metric = |name: &&str| name.starts_with("tollgate_") && is_name(name);
    let names = in_first_cells(&text).into_iter().map(|name| name.split('{').next().unwrap_or_default());
    let listed: Vec<&str> = names.filter(metric).collect();
    let literals = literals();
    let known: Vec<&str> = literals.iter().map(String::as_str).filter(metric).collect();
    assert!(known.len() > 40, "only {} were found", known.len());
    // Crates, ABI functions, and names in unit tests.
    let others = ["abi", "sdk", "on_timer", "route_clear", "v1", "v2", "active", "seconds"]
        .map(|name| format!("tollgate_{name}"));
    let known: Vec<&str> = known.into_iter().filter(|name| !others.iter().any(|other| other == name)).collect();
    for name in &known {
        assert!(listed.contains(name), "docs/operating.md has no row for the metric `{name}`");
    }
    for name in listed {
        assert!(known.contains(&name), "there is no metric `{name}`, which docs/operating.md has");
    }
}

#[test]
fn every_field_of_the_access_log_is_in_the_table_and_every_one_in_it_exists() {
    let text = operating();
    let listed = in_tables(&text, "| field | |\n");
    for field in tollgate::observe::access_log::FIELDS {
        assert!(listed.contains(&field.name), "docs/operating.md has no row for the field `{}`", field.name);
    }
    for name in listed.into_iter().filter(|name| !name.starts_with('%')) {
        let mut known = tollgate::observe::access_log::FIELDS.iter();
        assert!(known.any(|field| field.name == name), "there is no field `{name}`, which docs/operating.md has");
    }
}

#[test]
fn every_target_of_the_log_is_in_the_table_and_every_one_in_it_exists() {
    let text = operating();
    let mut listed = in_tables(&text, "| target | what it logs |\n");
    listed.retain(|target| target.starts_with("tollgate::"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/observe/target.rs");
    let code = fs::read_to_string(file).expect("a file of code");
    let known: Vec<&str> =
        code.lines().filter(|line| line.starts_with("pub const ")).filter_map(|line| line.split('"').nth(1)).collect();
    assert_eq!(listed, known, "the table in docs/operating.md, and observe/target.rs");
}

/// Collects the names of all fields in a schema, at any depth.
fn fields(schema: &serde_json::Value, found: &mut BTreeSet<String>) {
    use serde_json::Value;
    match schema {
        Value::Object(map) => {
            if let Some(Value::Object(properties)) = map.get("properties") {
                found.extend(properties.keys().cloned());
            }
            map.values().for_each(|value| fields(value, found));
        }
        Value::Array(all) => all.iter().for_each(|value| fields(value, found)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_configuration_is_in_a_table() {
    let schema = Command::new(env!("CARGO_BIN_EXE_tollgate")).arg("schema").output().expect("the proxy runs");
    let mut known = BTreeSet::new();
    fields(&serde_json::from_slice(&schema.stdout).expect("a schema"), &mut known);
    assert!(known.len() > 100, "only {} were found", known.len());
    let text = fs::read_to_string(root().join("docs/configuration.md")).expect("docs/configuration.md");
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let code = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let listed: BTreeSet<&str> = code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_')).collect();
    for name in known {
        assert!(listed.contains(name.as_str()), "docs/configuration.md has no row for the field `{name}`");
    }
}

/// Returns the anchors of a Markdown text's headings, as GitHub generates them.
fn anchors(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found: Vec<String> = Vec::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let next = (1..).map(|n| format!("{anchor}-{n}"));
        let mut names = std::iter::once(anchor.clone()).chain(next);
        found.extend(names.find(|name| !found.contains(name)));
    }
    found
}

/// Returns the targets of a Markdown text's links, except in fenced blocks.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let links = prose.flat_map(|text| text.split("](").skip(1));
    links.filter_map(|rest| rest.split_once(')').map(|(link, _)| link)).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let (mut wrong, mut count) = (String::new(), 0);
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
            let exists = match anchor {
                "" => target.exists(),
                anchor => fs::read_to_string(&target).is_ok_and(|text| anchors(&text).iter().any(|a| a == anchor)),
            };
            if !exists {
                writeln!(wrong, "{}: {link}", path.display()).expect("a text grows");
            }
        }
    }
    assert!(wrong.is_empty(), "broken links:\n{wrong}");
    assert!(count > 100, "only {count} links were found");
}

/// The paths that the guide for contributors names must exist. `NAME` stands for a new one.
#[test]
fn paths_in_the_guide_for_contributors_exist() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).expect("CONTRIBUTING.md");
    let prose: String = text.split("```").step_by(2).collect();
    let code = prose.split('`').skip(1).step_by(2);
    let paths: Vec<&str> = code.filter(|code| code.contains('/') && !code.contains([' ', ':', '<'])).collect();
    assert!(paths.len() > 30, "only {} were found", paths.len());
    for path in paths {
        let known = path.split("NAME").next().unwrap_or_default().trim_end_matches('*');
        assert!(root().join(known).exists(), "CONTRIBUTING.md names `{path}`, which does not exist");
    }
}

/// The whole script takes two builds, so only this is run.
#[test]
fn the_pgo_script_has_help_and_a_valid_configuration() {
    let root = root();
    let help = Command::new(root.join("examples/pgo.sh")).arg("--help").output().expect("a shell");
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("rustup component add llvm-tools"));
    let wrong = Command::new(root.join("examples/pgo.sh")).arg("--release").output().expect("a shell");
    assert_eq!(wrong.status.code(), Some(2));
    // With the files that the script has created at this point: certificates, and the filter.
    let dir = std::env::temp_dir().join(format!("tollgate-profiles-{}", std::process::id()));
    let filter = "target/filters/wasm32-unknown-unknown/filter/third_party.wasm";
    for folder in [Path::new("examples"), Path::new("target/pgo"), Path::new(filter).parent().unwrap()] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    write_certificates(&dir.join("target/pgo"));
    for file in ["examples/pgo.yaml", filter] {
        fs::copy(root.join(file), dir.join(file)).expect("`cargo filters` has been run");
    }
    let check = Command::new(env!("CARGO_BIN_EXE_tollgate")).arg("check").arg(dir.join("examples/pgo.yaml")).output();
    let check = check.expect("the proxy runs");
    fs::remove_dir_all(&dir).unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
