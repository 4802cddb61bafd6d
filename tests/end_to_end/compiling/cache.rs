//! The cache of compiled filters: code that other users could have written is never run.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    guest,
    harness::{Config, Proxy, run_in},
};

/// A directory with a configuration; the cache is in its subdirectory `cache`.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let config = String::from(Config::to("127.0.0.1:1").top("cache_dir: cache").filter("f", "f.wasm", ""));
    let text = format!("admin: {{enabled: false}}\n{}", config.replace("@main@", "127.0.0.1:0"));
    fs::write(dir.path().join("config.yaml"), text).expect("a file");
    fs::write(dir.path().join("f.wasm"), guest::version("right")).expect("a file");
    dir
}

fn tollgate(command: &str, dir: &Path) -> (bool, String) {
    run_in(dir, &[command, "config.yaml"], &[])
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode can be set");
}

/// The entries of a cache directory.
fn entries(cache: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(cache.join("modules")).expect("a folder").flatten().map(|entry| entry.path());
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

#[test]
fn a_cache_writable_by_others_is_an_error_with_a_remedy() {
    let dir = workplace();
    let cache = dir.path().join("cache");
    assert!(tollgate("check", dir.path()).0);
    for folder in [cache.join("modules"), cache.clone()] {
        mode(&folder, 0o777);
        for command in ["check", "run"] {
            let (fine, output) = tollgate(command, dir.path());
            assert!(!fine, "{command}");
            assert!(output.contains(&format!("can write to {} (mode 777)", folder.display())), "{output}");
            assert!(output.contains(&format!("`chmod -R go-w {}`", folder.display())), "{output}");
            assert!(output.contains("config.yaml:"), "it reports the location: {output}");
        }
        mode(&folder, 0o755);
        assert!(tollgate("check", dir.path()).0, "others may read it");
    }
}

#[test]
fn a_cache_owned_by_another_user_is_an_error() {
    let dir = workplace();
    let cache = dir.path().join("cache");
    assert!(tollgate("check", dir.path()).0);
    // Only root can change the owner.
    if chown(&cache, Some(65534), None).is_ok() {
        let (fine, output) = tollgate("check", dir.path());
        assert!(!fine && output.contains("belongs to user 65534, who could run code in this process"), "{output}");
    }
}

/// The default directory was not configured explicitly, so it must not prevent the start.
#[test]
fn a_default_cache_writable_by_others_is_ignored_with_a_warning() {
    let home = tempfile::tempdir().expect("a folder");
    let cache = home.path().join("tollgate");
    fs::create_dir(&cache).expect("a folder");
    mode(&cache, 0o777);
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("f.wasm"), guest::version("right")).expect("a file");
    let config = String::from(Config::to("127.0.0.1:1").filter("f", "f.wasm", "")).replace("@main@", "127.0.0.1:1");
    fs::write(dir.path().join("config.yaml"), config).expect("a file");
    let (fine, said) = run_in(dir.path(), &["check", "config.yaml"], &[("XDG_CACHE_HOME", home.path())]);
    assert!(fine, "{said}");
    assert!(said.contains("warning: cannot cache compiled filters: others than its owner can write to"), "{said}");
    assert!(!cache.join("modules").exists());
}

#[test]
fn damaged_or_swapped_cache_entries_are_recompiled() {
    // The code that an attacker would want to run.
    let planted = workplace();
    fs::write(planted.path().join("f.wasm"), guest::version("wrong")).expect("a file");
    assert!(tollgate("check", planted.path()).0);
    let planted = entries(&planted.path().join("cache"));

    let dir = workplace();
    assert!(tollgate("check", dir.path()).0);
    let kept = entries(&dir.path().join("cache"));
    assert_eq!((kept.len(), planted.len()), (1, 1));
    let (right, wrong) = (fs::read(&kept[0]).expect("it is ours"), fs::read(&planted[0]).expect("it is ours"));
    let mut flipped = right.clone();
    flipped[right.len() / 2] ^= 1;
    for content in [wrong, flipped, right[..right.len() / 2].to_vec(), Vec::new()] {
        fs::write(&kept[0], content).expect("it is ours");
        let (fine, output) = tollgate("check", dir.path());
        assert!(fine, "{output}");
        assert_eq!(fs::read(&kept[0]).expect("it is ours"), right);
    }
}

#[test]
fn a_proxy_uses_its_own_cache_entries_and_no_planted_ones() {
    let upstream = crate::harness::Upstream::saying("ok");
    let config = || Config::to(&upstream).top("cache_dir: cache").filter("f", "f.wasm", "");
    let mut proxy = Proxy::start_with(config(), &[("f.wasm", &guest::version("right"))]);
    assert_eq!(proxy.get("/").field("x-version"), Some("right"));
    let cache = proxy.dir().join("cache");
    assert_eq!(fs::metadata(&cache).expect("the cache exists").permissions().mode() & 0o777, 0o700);
    let right = entries(&cache);
    proxy.put("f.wasm", guest::version("wrong"));
    proxy.change_config(config());
    assert_eq!(proxy.get("/").field("x-version"), Some("wrong"));
    let wrong = entries(&cache).into_iter().find(|entry| !right.contains(entry)).expect("another entry");
    for entry in &right {
        fs::copy(&wrong, entry).expect("it is ours");
    }
    proxy.put("f.wasm", guest::version("right"));
    proxy.change_config(config());
    assert_eq!(proxy.get("/").field("x-version"), Some("right"));
    assert!(proxy.output().contains("is compiled again: its content does not match its digest"), "{}", proxy.output());
}
