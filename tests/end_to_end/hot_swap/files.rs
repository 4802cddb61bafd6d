//! The ways in which files are replaced: Kubernetes symlinks, editors' renames, writes in several steps, missing files
//! that appear later. The proxy notices by itself, and no request fails meanwhile.

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

/// Lays files out like a Kubernetes ConfigMap: `NAME -> ..data/NAME`, `..data -> ..STAMP`; a new version is published
/// by renaming another `..data` over the old one.
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

/// Publishes the versions `v2` to `v5` one after the other; all clients see each.
fn all_are_seen(proxy: &Proxy, put: impl Fn(u32)) {
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

/// A proxy whose filter is in a directory for [`publish`], with its first version.
fn published(upstream: &Upstream) -> (Proxy, PathBuf) {
    let mut proxy = Proxy::start(Config::to(upstream));
    let folder = proxy.dir().join("filters");
    publish(&folder, "1", &[("marker.wasm", &guest::version("v1"))]);
    proxy.change_config(Config::to(upstream).filter("marker", "filters/marker.wasm", ""));
    (proxy, folder)
}

#[test]
fn a_module_in_a_config_map_is_replaced() {
    let upstream = telling();
    let (proxy, folder) = published(&upstream);
    all_are_seen(&proxy, |nth| {
        publish(&folder, &nth.to_string(), &[("marker.wasm", &guest::version(&format!("v{nth}")))]);
    });
}

#[test]
fn a_configuration_in_a_config_map_is_replaced() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let text = fs::read_to_string(proxy.dir().join("config.yaml")).expect("the configuration");
    all_are_seen(&proxy, |nth| {
        let text = text.replace("v1", &format!("v{nth}"));
        publish(proxy.dir(), &nth.to_string(), &[("config.yaml", text.as_bytes())]);
    });
    assert!(
        !proxy.output().contains("WARN"),
        "the removal of the old directory is not worth a warning: {}",
        proxy.output()
    );
}

#[test]
fn a_file_that_an_editor_renames_first_is_reloaded() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let file = proxy.dir().join("config.yaml");
    let text = fs::read_to_string(&file).expect("the configuration");
    all_are_seen(&proxy, |nth| {
        // Like vim with `backupcopy=no`: the old file becomes the backup, then a new one is written.
        fs::rename(&file, proxy.dir().join("config.yaml~")).expect("a backup");
        fs::write(&file, text.replace("v1", &format!("v{nth}"))).expect("a new file");
    });
}

/// A partial file is rejected, and no client notices.
fn is_written_in_two_steps(proxy: &Proxy, name: &str, whole: &[u8]) {
    let load = Load::start(proxy, version);
    load.meet("v1");
    fs::write(proxy.dir().join(name), &whole[..whole.len() / 2]).expect("half a file");
    // Long enough for the proxy to read the partial file.
    proxy.wait_for_metric("tollgate_config_reloads_total", &[("result", "refused")], 1.0);
    load.meet("v1");
    fs::write(proxy.dir().join(name), whole).expect("the whole file");
    load.meet("v2");
    assert_eq!(load.end(), ["v1", "v2"]);
    no_failures(proxy);
}

#[test]
fn a_configuration_written_in_two_steps_is_reloaded() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let text = fs::read_to_string(proxy.dir().join("config.yaml")).expect("the configuration");
    is_written_in_two_steps(&proxy, "config.yaml", text.replace("v1", "v2").as_bytes());
}

#[test]
fn a_module_written_in_two_steps_is_reloaded() {
    let upstream = telling();
    let proxy = marked(&upstream, &guest::version("v1"));
    is_written_in_two_steps(&proxy, "marker.wasm", &guest::version("v2"));
}

#[test]
fn a_module_that_appears_after_the_configuration_is_loaded() {
    let upstream = telling();
    let mut proxy = Proxy::start(Config::to(&upstream));
    proxy.put_config(with_marker(&upstream));
    assert_eq!(proxy.reload().0, 422);
    assert_eq!(proxy.get("/").text(), "none");
    fs::write(proxy.dir().join("marker.wasm"), guest::version("v1")).expect("a file");
    wait_until("the module to be noticed", || proxy.get("/").text() == "v1");
    // The same with its directory.
    proxy.put_config(Config::to(&upstream).filter("marker", "of/later/marker.wasm", ""));
    assert_eq!(proxy.reload().0, 422);
    for folder in ["of", "of/later"] {
        fs::create_dir(proxy.dir().join(folder)).expect("a folder");
        // Time for the proxy to check: the directory alone changes nothing. (If it is too short, the test still
        // passes.)
        thread::sleep(Duration::from_millis(400));
    }
    fs::write(proxy.dir().join("of/later/marker.wasm"), guest::version("v2")).expect("a file");
    wait_until("the module to be noticed", || proxy.get("/").text() == "v2");
    no_failures(&proxy);
}

#[test]
fn a_link_to_another_directory_with_the_same_content_is_followed() {
    let upstream = telling();
    let (proxy, folder) = published(&upstream);
    publish(&folder, "2", &[("marker.wasm", &guest::version("v1"))]);
    // As above: nothing changes, and the test still passes if the time is too short.
    thread::sleep(Duration::from_millis(400));
    fs::write(folder.join("..2/marker.wasm"), guest::version("v2")).expect("a file");
    wait_until("the module to be noticed", || version(&proxy.get("/")) == "v2");
    no_failures(&proxy);
}
