//! The ways in which files are replaced: Kubernetes's links, editors' renames, writes in several steps, files that are not
//! there yet. The proxy notices by itself, and nobody fails meanwhile.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{Load, marked, no_failures, said, telling, version, with_marker};
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wait_until},
};

/// Lays files out as Kubernetes does for a ConfigMap: `NAME -> ..data/NAME`, `..data -> ..STAMP`; another version is put in
/// place by renaming another `..data` over the old one.
fn publish(dir: &Path, stamp: &str, files: &[(&str, &[u8])]) {
    let folder = dir.join(format!("..{stamp}"));
    fs::create_dir_all(&folder).expect("a folder");
    files.iter().for_each(|(name, content)| fs::write(folder.join(name), content).expect("a file"));
    let old = fs::read_link(dir.join("..data")).ok();
    symlink(format!("..{stamp}"), dir.join("..data_tmp")).expect("a link");
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("a link in place of another");
    for (name, _) in files {
        if !fs::symlink_metadata(dir.join(name)).is_ok_and(|file| file.is_symlink()) {
            symlink(format!("..data/{name}"), dir.join(format!(".{name}"))).expect("a link");
            fs::rename(dir.join(format!(".{name}")), dir.join(name)).expect("a link in place of a file");
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old)).expect("the old version can go");
    }
}

/// Puts the versions `v2` to `v5` into place, one after the other; all clients meet each.
fn all_are_met(proxy: &Proxy, put: impl Fn(u32)) {
    let load = Load::start(proxy, version);
    for nth in 1..=5 {
        if nth > 1 {
            put(nth);
        }
        load.meet(&format!("v{nth}"));
    }
    assert_eq!(load.end(), ["v1", "v2", "v3", "v4", "v5"]);
    no_failures(proxy);
}

/// A proxy whose filter is in a folder for [`publish`], where its first version is.
fn published(upstream: &Upstream) -> (Proxy, PathBuf) {
    let mut proxy = Proxy::start(Config::to(upstream));
    let folder = proxy.dir().join("filters");
    publish(&folder, "1", &[("marker.wasm", &guest::version("v1"))]);
    proxy.change_config(Config::to(upstream).filter("marker", "filters/marker.wasm", ""));
    (proxy, folder)
}

#[test]
fn a_module_in_a_config_map() {
    let upstream = telling();
    let (proxy, folder) = published(&upstream);
    all_are_met(&proxy, |nth| {
        publish(&folder, &nth.to_string(), &[("marker.wasm", &guest::version(&format!("v{nth}")))]);
    });
}

#[test]
fn a_configuration_in_a_config_map() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let text = fs::read_to_string(proxy.dir().join("config.yaml")).expect("the configuration");
    all_are_met(&proxy, |nth| {
        let text = text.replace("v1", &format!("v{nth}"));
        publish(proxy.dir(), &nth.to_string(), &[("config.yaml", text.as_bytes())]);
    });
    assert!(!proxy.output().contains("WARN"), "that the old folder has gone is nothing to warn of: {}", proxy.output());
}

#[test]
fn a_file_that_an_editor_moves_away_first() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let file = proxy.dir().join("config.yaml");
    let text = fs::read_to_string(&file).expect("the configuration");
    all_are_met(&proxy, |nth| {
        // As vim does it with `backupcopy=no`: the old one becomes the backup, then a new one is written.
        fs::rename(&file, proxy.dir().join("config.yaml~")).expect("a backup");
        fs::write(&file, text.replace("v1", &format!("v{nth}"))).expect("a new file");
    });
}

/// The half of a file is refused, and nobody notices.
fn is_written_in_two_steps(proxy: &Proxy, name: &str, whole: &[u8]) {
    let load = Load::start(proxy, version);
    load.meet("v1");
    fs::write(proxy.dir().join(name), &whole[..whole.len() / 2]).expect("half a file");
    // Long enough that the proxy has looked at the half.
    proxy.wait_for_metric("tollgate_config_reloads_total", &[("result", "refused")], 1.0);
    load.meet("v1");
    fs::write(proxy.dir().join(name), whole).expect("the whole file");
    load.meet("v2");
    assert_eq!(load.end(), ["v1", "v2"]);
    no_failures(proxy);
}

#[test]
fn a_configuration_that_is_written_in_two_steps() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let text = fs::read_to_string(proxy.dir().join("config.yaml")).expect("the configuration");
    is_written_in_two_steps(&proxy, "config.yaml", text.replace("v1", "v2").as_bytes());
}

#[test]
fn a_module_that_is_written_in_two_steps() {
    let upstream = telling();
    let proxy = marked(&upstream, &guest::version("v1"));
    is_written_in_two_steps(&proxy, "marker.wasm", &guest::version("v2"));
}

#[test]
fn a_module_that_comes_after_the_configuration() {
    let upstream = telling();
    let mut proxy = Proxy::start(Config::to(&upstream));
    proxy.put_config(with_marker(&upstream));
    assert_eq!(proxy.reload().0, 422);
    assert_eq!(proxy.get("/").text(), "none");
    fs::write(proxy.dir().join("marker.wasm"), guest::version("v1")).expect("a file");
    wait_until("the module to be noticed", || proxy.get("/").text() == "v1");
    // Its folder as well.
    proxy.put_config(Config::to(&upstream).filter("marker", "of/later/marker.wasm", ""));
    assert_eq!(proxy.reload().0, 422);
    for folder in ["of", "of/later"] {
        fs::create_dir(proxy.dir().join(folder)).expect("a folder");
        // Time for the proxy to have looked: the folder alone changes nothing. (If it is too little, nothing is missed.)
        thread::sleep(Duration::from_millis(400));
    }
    fs::write(proxy.dir().join("of/later/marker.wasm"), guest::version("v2")).expect("a file");
    wait_until("the module to be noticed", || proxy.get("/").text() == "v2");
    no_failures(&proxy);
}

#[test]
fn a_link_that_turns_to_a_folder_with_the_same_content() {
    let upstream = telling();
    let (proxy, folder) = published(&upstream);
    publish(&folder, "2", &[("marker.wasm", &guest::version("v1"))]);
    // As above: nothing to see, and nothing is missed if it is too little.
    thread::sleep(Duration::from_millis(400));
    fs::write(folder.join("..2/marker.wasm"), guest::version("v2")).expect("a file");
    wait_until("the module to be noticed", || version(&proxy.get("/")) == "v2");
    no_failures(&proxy);
}
