//! Compiles the built-in filters to WebAssembly and embeds them in the binary, with the sources of the SDK for `tollgate new`.
//! The folder `filters/` is the only list of the built-in filters: everything else is derived from it (see
//! `src/builtins.rs`).
//!
//! The filters are compiled by a separate cargo with its own target folder, because the outer cargo holds the lock of its
//! target folder while this runs. `cargo filters` uses the same folder, so nothing is compiled twice.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const TARGET: &str = "wasm32-unknown-unknown";

fn var(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_default()
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    exit(1);
}

fn main() {
    let root = var("CARGO_MANIFEST_DIR").join("..");
    for folder in ["abi", "sdk", "filters", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
    }
    let filters = filters(&root.join("filters"));
    let target_dir = root.join("target/filters");
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .current_dir(&root)
        .args(["build", "--profile", "filter", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    cargo.args(filters.iter().flat_map(|name| ["--package", name]));
    // Settings of the outer cargo are for its own target.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let keep = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_"];
        if (text.starts_with("CARGO") && !keep.iter().any(|k| text.starts_with(k)))
            || ["RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "TARGET", "HOST", "PROFILE"]
                .contains(&&*text)
        {
            cargo.env_remove(&name);
        }
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(_) => {
            fail(&format!("cannot build the standard filters; if the target is missing: rustup target add {TARGET}"))
        }
        Err(e) => fail(&format!("cannot run cargo for the standard filters: {e}")),
    }
    let mut modules = String::new();
    for name in &filters {
        let wasm = target_dir.join(TARGET).join("filter").join(format!("{}.wasm", name.replace('-', "_")));
        let copy = var("OUT_DIR").join(format!("{name}.wasm"));
        // A copy, so that the embedded file does not change during a build.
        if let Err(e) = fs::copy(&wasm, &copy) {
            fail(&format!("{}: {e}", wasm.display()));
        }
        let _ = writeln!(modules, "    include_bytes!({:?}),", absolute(&copy));
    }
    let table = format!(
        "/// The names of the built-in filters.\npub const NAMES: &[&str] = &{filters:?};\n\n\
         /// Their modules.\nconst MODULES: &[&[u8]] = &[\n{modules}];\n"
    );
    write("builtins.rs", &table);
    // For the documentation of the configuration's field `wasm`.
    let others: Vec<String> = filters[1..].iter().map(|name| format!("`{name}`")).collect();
    println!("cargo::rustc-env=BUILTIN_FILTERS=`builtin:{}` (also {})", filters[0], others.join(", "));
    write("sources.rs", &sources(&root));
}

/// Returns the names of the filters in a folder: one per package, as the workspace's `filters/*` finds them. The router
/// comes first, since nearly every configuration has one.
fn filters(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| fail(&format!("{}: {e}", folder.display())));
    let packages = entries.flatten().filter(|entry| entry.path().join("Cargo.toml").is_file());
    let mut names: Vec<String> = packages.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_by_key(|name| (name != "router", name.clone()));
    names
}

fn write(name: &str, text: &str) {
    if let Err(e) = fs::write(var("OUT_DIR").join(name), text) {
        fail(&format!("{name}: {e}"));
    }
}

/// Returns a table of the sources of the SDK and of its dependencies in this repository.
fn sources(root: &Path) -> String {
    let mut table = String::from(
        "/// The files below `vendor/`, without the manifests.\npub const SOURCES: &[(&str, &str)] = &[\n",
    );
    for (folder, package) in [("abi", "tollgate-abi"), ("sdk", "tollgate-sdk")] {
        let folder = absolute(&root.join(folder));
        let mut files = Vec::new();
        if let Err(e) = list(&folder.join("src"), &mut files) {
            fail(&format!("{}: {e}", folder.display()));
        }
        files.sort();
        for file in files {
            let place = Path::new(package).join(file.strip_prefix(&folder).unwrap_or(&file));
            let _ = writeln!(table, "    ({place:?}, include_str!({file:?})),");
        }
    }
    table.push_str("];\n");
    table
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
