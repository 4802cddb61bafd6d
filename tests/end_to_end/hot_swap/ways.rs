//! Every way in which a file can change, for every kind of file: the new content is applied, a partial file never is,
//! and nothing is rejected meanwhile.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tempfile::TempDir;

use super::telling;
use crate::{
    guest,
    harness::{Config, Proxy, Setup, Upstream, not_run, wait_until},
};

/// Longer than files must be quiet, and longer than the proxy waits for a file that is not.
const PAUSE: Duration = Duration::from_millis(1500);

/// A kind of file: its content in version n, as a first part that is valid by itself, and the rest.
type Kind = fn(u32) -> [Vec<u8>; 2];

/// A proxy with a file that it watches.
struct Watched {
    proxy: Proxy,
    /// `live/` in its directory, which contains the file.
    folder: PathBuf,
    name: &'static str,
    kind: Kind,
    versions: u32,
}

impl Watched {
    /// A proxy at version 2: the file was created after the start, for a configuration that names it.
    fn added(mut proxy: Proxy, name: &'static str, kind: Kind, config: Config) -> Watched {
        let folder = proxy.dir().join("live");
        fs::create_dir(&folder).expect("a folder");
        write(&folder.join(name), &kind(2));
        proxy.change_config(config);
        Watched { proxy, folder, name, kind, versions: 2 }
    }

    fn file(&self) -> PathBuf {
        self.folder.join(self.name)
    }

    /// The content of the next version.
    fn next(&mut self) -> [Vec<u8>; 2] {
        self.versions += 1;
        (self.kind)(self.versions)
    }

    /// Waits until the proxy has applied the file's content, and asserts that it has applied nothing else.
    fn is_applied(&self, way: &str) {
        wait_until(&format!("`{}` after {way}", self.name), || self.proxy.version() >= self.versions.into());
        assert_eq!(self.proxy.version(), u64::from(self.versions), "{way}");
        // The whole content was applied: a reload finds no change.
        assert_eq!(self.proxy.reload().1["result"], "unchanged", "{way}");
    }

    fn refused(&self) -> f64 {
        self.proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "refused")])
    }

    fn change(&mut self, way: &str, how: impl FnOnce(&Path, [Vec<u8>; 2])) {
        let next = self.next();
        how(&self.file(), next);
        self.is_applied(way);
    }
}

fn write(path: &Path, content: &[Vec<u8>; 2]) {
    fs::write(path, content.concat()).expect("a file");
}

fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    fs::rename(from, to).expect("it can be renamed");
}

/// Writes the file in two steps, the first of which is valid by itself.
fn write_slowly(path: &Path, [first, rest]: &[Vec<u8>; 2]) {
    let mut file = File::create(path).expect("a file");
    file.write_all(first).expect("it can be written");
    thread::sleep(PAUSE);
    file.write_all(rest).expect("it can be written");
}

fn put_over(path: &Path, next: &[Vec<u8>; 2]) {
    let temporary = path.with_extension("new");
    write(&temporary, next);
    rename(temporary, path);
}

/// Creates a link, or replaces it.
fn turn(link: &Path, target: impl AsRef<Path>) {
    let temporary = link.with_file_name("turned");
    symlink(target, &temporary).expect("a link");
    rename(temporary, link);
}

fn all_ways(mut watched: Watched) {
    let live = watched.folder.clone();
    let root = live.parent().expect("a folder").to_owned();
    let refused = watched.refused();
    watched.change("renaming over it", |file, next| put_over(file, &next));
    watched.change("writing slowly", |file, next| write_slowly(file, &next));
    watched.change("creating it again, slowly", |file, next| {
        fs::remove_file(file).expect("it exists");
        write_slowly(file, &next);
    });
    watched.change("writing slowly once more", |file, next| write_slowly(file, &next));
    for round in 0..2 {
        let old = root.join(format!("old{round}"));
        watched.change("replacing its directory", |file, next| {
            fs::create_dir(root.join("new")).expect("a folder");
            write(&root.join("new").join(file.file_name().expect("a name")), &next);
            rename(&live, old);
            rename(root.join("new"), &live);
        });
        watched.change("writing to it there", |file, next| write(file, &next));
    }
    // As Kubernetes does it.
    for stamp in ["..1", "..2", "..3"] {
        watched.change("turning `..data`", |file, next| {
            let name = file.file_name().expect("a name");
            fs::create_dir(live.join(stamp)).expect("a folder");
            write(&live.join(stamp).join(name), &next);
            let old = fs::read_link(live.join("..data")).ok();
            turn(&live.join("..data"), stamp);
            if old.is_none() {
                turn(file, Path::new("..data").join(name));
            }
            old.into_iter().for_each(|old| fs::remove_dir_all(live.join(old)).expect("it can go"));
        });
    }
    // live/NAME -> ../chain/first -> second -> ../end/NAME
    fs::create_dir(root.join("chain")).expect("a folder");
    for end in ["end1", "end2", "end3"] {
        watched.change("turning the middle of a chain of links", |file, next| {
            fs::create_dir(root.join(end)).expect("a folder");
            let target = root.join(end).join(file.file_name().expect("a name"));
            write(&target, &next);
            turn(&root.join("chain/second"), target);
            turn(&root.join("chain/first"), "second");
            if end == "end1" {
                turn(file, "../chain/first");
            }
        });
    }
    watched.change("writing slowly at the end of a chain", |file, next| write_slowly(file, &next));
    watched.change("replacing it by a hard link", |file, next| {
        write(&root.join("source"), &next);
        fs::hard_link(root.join("source"), root.join("name")).expect("another name");
        rename(root.join("name"), file);
    });
    watched.change("writing to it under its other name", |_, next| write(&root.join("source"), &next));
    let elsewhere = TempDir::new_in("/dev/shm").ok().filter(|dir| {
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        device(dir.path()) != device(&root)
    });
    if let Some(elsewhere) = &elsewhere {
        watched.change("a link to another mount", |file, next| {
            write(&elsewhere.path().join("it"), &next);
            turn(file, elsewhere.path().join("it"));
        });
        watched.change("writing slowly on another mount", |_, next| write_slowly(&elsewhere.path().join("it"), &next));
        watched.change("renaming over it on another mount", |_, next| put_over(&elsewhere.path().join("it"), &next));
    }
    assert_eq!(watched.refused(), refused, "nothing was rejected");

    watched.change("losing the right to read it, and getting it back", |file, next| {
        let mode = |mode| fs::set_permissions(file, Permissions::from_mode(mode)).expect("it is ours");
        put_over(file, &[Vec::new(), fs::read(file).expect("it can be read")]);
        mode(0o000);
        thread::sleep(PAUSE);
        mode(0o600);
        write(file, &next);
    });
    let refused = watched.refused();
    fs::remove_file(watched.file()).expect("it exists");
    wait_until("its absence to be noticed", || watched.refused() > refused);
    watched.change("making it again", |file, next| write(file, &next));
}

#[test]
fn all_ways_of_changing_the_configuration() {
    // A configuration without a section for the admin listener, whose changes need a restart.
    let kind: Kind = |n| {
        let first = format!(
            "workers: 2\ndrain_timeout: {n}s\nlisteners: [{{name: main, address: '127.0.0.1:0', cluster: c}}]\n"
        );
        [(first + "clusters: [{name: c, endpoints: []}]\n").into(), b"cache_dir: cache\n".to_vec()]
    };
    let proxy = Proxy::start(Config::new());
    let text = fs::read_to_string(proxy.dir().join("config.yaml")).expect("the configuration");
    fs::create_dir(proxy.dir().join("live")).expect("a folder");
    fs::write(proxy.dir().join("live/config.yaml"), text).expect("a file");
    turn(&proxy.dir().join("config.yaml"), "live/config.yaml");
    let folder = proxy.dir().join("live");
    all_ways(Watched { proxy, folder, name: "config.yaml", kind, versions: 1 });
}

#[test]
fn all_ways_of_changing_a_module() {
    let upstream = telling();
    let kind: Kind = |n| {
        // The module is valid without its last section.
        let more = format!("more{n}");
        let section = [&[0, more.len() as u8 + 1, more.len() as u8], more.as_bytes()].concat();
        [guest::version(&format!("v{n}")), section]
    };
    let config = Config::to(&upstream).filter("marker", "live/marker.wasm", "");
    all_ways(Watched::added(Proxy::start(Config::to(&upstream)), "marker.wasm", kind, config));
}

fn authority(name: &str) -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&key).expect("a certificate").pem().into_bytes()
}

#[test]
fn all_ways_of_changing_authorities() {
    let upstream = Upstream::saying("hello");
    let kind: Kind = |_| [authority("first.test"), authority("second.test")];
    let config = Config::to_with(&upstream, "tls: {ca: [live/ca.pem]}");
    all_ways(Watched::added(Proxy::start(Config::to(&upstream)), "ca.pem", kind, config));
}

#[test]
fn a_file_that_is_never_closed_is_applied_eventually() {
    let proxy = Proxy::start(Config::new().top("drain_timeout: 1s"));
    let path = proxy.dir().join("config.yaml");
    let mut open = File::options().append(true).open(&path).expect("a file");
    open.write_all(b"clusters: [{name: late, endpoints: []}]\n").expect("it can be written");
    wait_until("the change", || proxy.version() == 2);
    proxy.wait_for_output("was written to but not closed");
    // A reload applies it immediately.
    open.write_all(b"# more\n").expect("it can be written");
    fs::write(&path, fs::read_to_string(&path).expect("a file").replace("late", "later")).expect("it can be written");
    open.write_all(b"# more\n").expect("it can be written");
    assert_eq!(proxy.reload().0, 200);
    assert_eq!(proxy.config()["config"]["clusters"][0]["name"], "later");
}

/// A namespace with a low limit on inotify watches; `$0` and its arguments are the proxy.
fn with_few_watches(config: impl Into<Setup>, script: &str) -> Option<Proxy> {
    let begin = format!("{script} && exec \"$0\" \"$@\"");
    let wrapper = ["unshare", "--user", "--map-root-user", "sh", "-c", &begin];
    let can = std::process::Command::new(wrapper[0])
        .args(["--user", "--map-root-user", "sh", "-c", "echo 5 > /proc/sys/user/max_inotify_watches"])
        .output();
    if !can.as_ref().is_ok_and(|output| output.status.success()) {
        not_run::for_want_of("namespaces", &format!("`unshare`: {can:?}"));
        return None;
    }
    Some(Proxy::start_wrapped(config, &wrapper))
}

#[test]
fn without_inotify_files_are_polled() {
    let upstream = telling();
    let config = Config::to(&upstream);
    let Some(mut proxy) = with_few_watches(config.clone(), "echo 0 > /proc/sys/user/max_inotify_instances") else {
        return;
    };
    proxy.wait_for_output("cannot watch files: Too many open files");
    assert!(proxy.config()["unwatched"].as_str().is_some_and(|why| why.contains("cannot watch files")));
    proxy.put_config(config.clone().top("drain_timeout: 7s"));
    wait_until("the change", || proxy.version() == 2);
    let path = proxy.dir().join("config.yaml");
    let text = fs::read_to_string(&path).expect("the configuration");
    write_slowly(&path, &[text.replace("7s", "8s").into(), b"cache_dir: cache\n".to_vec()]);
    wait_until("the change", || proxy.version() == 3);
    assert_eq!(proxy.config()["config"]["cache_dir"], "cache", "not a partial file");
}

#[test]
fn a_failed_watch_is_retried() {
    let upstream = telling();
    let script = "echo 2 > /proc/sys/user/max_inotify_watches && \
        (for i in $(seq 600); do [ -e more ] && break; sleep 0.1; done; \
        echo 1000 > /proc/sys/user/max_inotify_watches) >/dev/null 2>&1 &";
    // The shell continues immediately.
    let script = format!("{{ {script} }}");
    let Some(mut proxy) = with_few_watches(Config::to(&upstream), &script) else { return };
    proxy.wait_for_output("the limit of inotify watches is reached");
    proxy.put_config(Config::to(&upstream).top("drain_timeout: 7s"));
    wait_until("the change", || proxy.version() == 2);
    fs::write(proxy.dir().join("more"), "").expect("a file");
    proxy.wait_for_output("all files are watched again");
    assert!(proxy.config()["unwatched"].is_null());
    proxy.put_config(Config::to(&upstream).top("drain_timeout: 8s"));
    wait_until("the change", || proxy.version() == 3);
}
