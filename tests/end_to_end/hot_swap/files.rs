//! The ways in which files are replaced: Kubernetes's links, editors' renames, writes in several steps, files that are not
//! there yet. The proxy notices by itself, and nobody fails meanwhile.

use std::{fs, os::unix::fs::symlink, path::Path, thread, time::Duration};

use super::{Load, no_failures, said, telling, version};
use crate::{
    guest,
    harness::{Config, Proxy, wait_until},
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

#[test]
fn a_module_in_a_config_map() {
    let upstream = telling();
    let mut proxy = Proxy::start(Config::to(&upstream));
    let folder = proxy.dir().join("filters");
    publish(&folder, "1", &[("marker.wasm", &guest::version("v1"))]);
    proxy.change_config(Config::to(&upstream).filter("marker", "filters/marker.wasm", ""));
    let load = Load::start(&proxy, version);
    for nth in 1..=4 {
        load.meet(&format!("v{nth}"));
        let next = nth + 1;
        publish(&folder, &next.to_string(), &[("marker.wasm", &guest::version(&format!("v{next}")))]);
    }
    load.meet("v5");
    assert_eq!(load.end(), ["v1", "v2", "v3", "v4", "v5"]);
    no_failures(&proxy);
}

#[test]
fn a_configuration_in_a_config_map() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let text = fs::read_to_string(proxy.dir().join("config.yaml")).expect("the configuration");
    let load = Load::start(&proxy, version);
    for nth in 1..=4 {
        load.meet(&format!("v{nth}"));
        let next = nth + 1;
        let text = text.replace("v1", &format!("v{next}"));
        publish(proxy.dir(), &next.to_string(), &[("config.yaml", text.as_bytes())]);
    }
    load.meet("v5");
    assert_eq!(load.end(), ["v1", "v2", "v3", "v4", "v5"]);
    no_failures(&proxy);
    assert!(!proxy.output().contains("WARN"), "that the old folder has gone is nothing to warn of: {}", proxy.output());
}

#[test]
fn a_file_that_an_editor_moves_away_first() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let file = proxy.dir().join("config.yaml");
    let load = Load::start(&proxy, version);
    for nth in 2..=4 {
        // As vim does it with `backupcopy=no`: the old one becomes the backup, then a new one is written.
        let text = fs::read_to_string(&file).expect("the configuration");
        fs::rename(&file, proxy.dir().join("config.yaml~")).expect("a backup");
        fs::write(&file, text.replace(&format!("v{}", nth - 1), &format!("v{nth}"))).expect("a new file");
        load.meet(&format!("v{nth}"));
    }
    load.end();
    no_failures(&proxy);
}

#[test]
fn a_configuration_that_is_written_in_two_steps() {
    let upstream = telling();
    let proxy = Proxy::start(said(&upstream, "v1"));
    let file = proxy.dir().join("config.yaml");
    let whole = fs::read_to_string(&file).expect("the configuration").replace("v1", "v2");
    let load = Load::start(&proxy, version);
    load.meet("v1");
    fs::write(&file, &whole[..whole.len() / 2]).expect("half a file");
    // Long enough that the proxy has looked at the half.
    proxy.wait_for_metric("tollgate_config_reloads_total", &[("result", "refused")], 1.0);
    load.meet("v1");
    fs::write(&file, &whole).expect("the whole file");
    load.meet("v2");
    assert_eq!(load.end(), ["v1", "v2"]);
    no_failures(&proxy);
}

#[test]
fn a_module_that_is_written_in_two_steps() {
    let upstream = telling();
    let config = Config::to(&upstream).filter("marker", "marker.wasm", "");
    let proxy = Proxy::start_with(config, &[("marker.wasm", &guest::version("v1"))]);
    let (file, whole) = (proxy.dir().join("marker.wasm"), guest::version("v2"));
    let load = Load::start(&proxy, version);
    load.meet("v1");
    fs::write(&file, &whole[..whole.len() / 2]).expect("half a file");
    proxy.wait_for_metric("tollgate_config_reloads_total", &[("result", "refused")], 1.0);
    load.meet("v1");
    fs::write(&file, &whole).expect("the whole file");
    load.meet("v2");
    assert_eq!(load.end(), ["v1", "v2"]);
    no_failures(&proxy);
}

#[test]
fn a_module_that_comes_after_the_configuration() {
    let upstream = telling();
    let mut proxy = Proxy::start(Config::to(&upstream));
    proxy.put_config(Config::to(&upstream).filter("marker", "marker.wasm", ""));
    assert_eq!(proxy.reload().0, 422);
    assert_eq!(proxy.get("/").text(), "none");
    fs::write(proxy.dir().join("marker.wasm"), guest::version("v1")).expect("a file");
    wait_until("the module to be noticed", || proxy.get("/").text() == "v1");
    no_failures(&proxy);
}

#[test]
fn a_module_whose_folder_comes_after_the_configuration() {
    let upstream = telling();
    let mut proxy = Proxy::start(Config::to(&upstream));
    proxy.put_config(Config::to(&upstream).filter("marker", "of/later/marker.wasm", ""));
    assert_eq!(proxy.reload().0, 422);
    for folder in ["of", "of/later"] {
        fs::create_dir(proxy.dir().join(folder)).expect("a folder");
        // Time for the proxy to have looked: the folder alone changes nothing. (If it is too little, nothing is missed.)
        thread::sleep(Duration::from_millis(400));
    }
    fs::write(proxy.dir().join("of/later/marker.wasm"), guest::version("v1")).expect("a file");
    wait_until("the module to be noticed", || proxy.get("/").text() == "v1");
    no_failures(&proxy);
}

#[test]
fn a_link_that_turns_to_a_folder_with_the_same_content() {
    let upstream = telling();
    let mut proxy = Proxy::start(Config::to(&upstream));
    let folder = proxy.dir().join("filters");
    publish(&folder, "1", &[("marker.wasm", &guest::version("v1"))]);
    proxy.change_config(Config::to(&upstream).filter("marker", "filters/marker.wasm", ""));
    publish(&folder, "2", &[("marker.wasm", &guest::version("v1"))]);
    // As above: nothing to see, and nothing is missed if it is too little.
    thread::sleep(Duration::from_millis(400));
    fs::write(folder.join("..2/marker.wasm"), guest::version("v2")).expect("a file");
    wait_until("the module to be noticed", || version(&proxy.get("/")) == "v2");
    no_failures(&proxy);
}
