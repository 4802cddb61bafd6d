//! Tests of certificates in snapshots: which files belong to one, when a new one is built, and its diagnostics.

use std::{fmt::Write, time::Duration};

use super::{
    super::snapshot::{BuildMode, SnapshotBuilder},
    *,
};
use crate::{
    config::{Diagnostics, Loaded},
    tls::tests::pki::{Ca, Dir},
    wasm::Compiler,
};

const CONFIG: &str = "\
listeners:
  - name: web
    address: 127.0.0.1:0
    tls:
      certificates:
        - certificate: server.pem
          key: server.key
clusters:
  - name: api
    tls:
      ca: [ca.pem]
";

struct World {
    dir: Dir,
    ca: Ca,
    builder: SnapshotBuilder,
}

impl World {
    fn new() -> World {
        let world = World {
            dir: Dir::new(),
            ca: Ca::new("ca"),
            builder: SnapshotBuilder::new(1, Compiler::in_process()).unwrap(),
        };
        world.dir.write("ca.pem", &world.ca.pem());
        world.rotate();
        world.dir.write("config.yaml", CONFIG);
        world
    }

    fn rotate(&self) {
        self.dir.pair("server", &self.ca.leaf(&["web.test"]));
    }

    fn load(&self) -> Loaded {
        crate::control::load::load(&self.dir.path().join("config.yaml")).unwrap()
    }

    fn make(&self, previous: Option<&Snapshot>) -> Result<Arc<Snapshot>, Diagnostics> {
        let built = self.builder.build(self.load(), previous, BuildMode::Trial)?;
        // As if it were applied.
        self.builder.publish(built.clusters);
        Ok(built.snapshot)
    }

    /// Returns the diagnostics without the directory.
    fn shown(&self, diagnostics: &Diagnostics) -> String {
        diagnostics.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn another_certificate_makes_another_snapshot() {
    let world = World::new();
    let first = world.make(None).unwrap();
    let tls = || world.builder.clusters.get("api").unwrap().transport.tls.clone().unwrap();
    let before = tls();
    assert!(first.is_made_of(&world.load()));
    world.rotate();
    assert!(!first.is_made_of(&world.load()));
    let second = world.make(Some(&first)).unwrap();
    assert!(second.is_made_of(&world.load()));
    assert_ne!(first.hash, second.hash);
    let shown = |s: &Snapshot| s.listeners[0].tls().next().unwrap().local(None).unwrap().sha256.clone();
    assert_ne!(shown(&first), shown(&second));
    assert!(Arc::ptr_eq(&before, &tls()), "the cluster is unchanged");
    world.dir.write("ca.pem", &Ca::new("other").pem());
    assert!(!second.is_made_of(&world.load()));
    let third = world.make(Some(&second)).unwrap();
    assert!(third.is_made_of(&world.load()) && !Arc::ptr_eq(&before, &tls()));
}

#[test]
fn a_half_written_pair_is_rejected() {
    let world = World::new();
    let first = world.make(None).unwrap();
    let next = world.ca.leaf(&["web.test"]);
    world.dir.write("server.pem", &next.pem);
    let refused = world.make(Some(&first)).err().unwrap();
    assert_eq!(
        world.shown(&refused),
        "config.yaml:7:16: error: the key in `server.key` does not belong to the (first) certificate in `server.pem` \
         (this is normal while both files are being replaced: they are read again when the other one changes)"
    );
    world.dir.write("server.key", &next.key.serialize_pem());
    world.make(Some(&first)).unwrap();
}

#[test]
fn errors_are_at_their_places() {
    let world = World::new();
    std::fs::remove_file(world.dir.path().join("server.pem")).unwrap();
    world.dir.write("ca.pem", "");
    let refused = world.make(None).err().unwrap();
    assert_eq!(
        world.shown(&refused),
        "config.yaml:6:24: error: there is no file `server.pem`\n\
         config.yaml:11:12: error: there is no certificate in `ca.pem`: it has no PEM section of this type"
    );
}

#[test]
fn all_files_are_watched_except_unused_ones() {
    let world = World::new();
    let names = |text: &str| {
        world.dir.write("config.yaml", text);
        let files = world.load().source.dependencies().files;
        files.iter().skip(1).fold(String::new(), |mut all, path| {
            let _ = write!(all, "{} ", path.file_name().unwrap().display());
            all
        })
    };
    let all = CONFIG
        .replace("    tls:\n      cert", "    tls:\n      client_ca: [c.pem]\n      crl: [l.pem]\n      cert")
        .replace("[ca.pem]", "[ca.pem]\n      crl: [x.pem]\n      certificate: {certificate: y.pem, key: y.key}");
    assert_eq!(names(&all), "server.pem server.key c.pem l.pem y.pem y.key ca.pem x.pem ");
    assert_eq!(names(&CONFIG.replace("    tls:\n      cert", "    tls:\n      mode: disable\n      cert")), "ca.pem ");
    let disabled = CONFIG.replace("    tls:\n      cert", "    tls:\n      mode: disable\n      cert");
    world.dir.write("config.yaml", &disabled);
    assert!(world.make(None).unwrap().listeners[0].tls().next().is_none());
}

#[test]
fn expiry_dates_are_reported() {
    let world = World::new();
    let mut params = crate::tls::tests::pki::params(&["web.test"]);
    params.not_after = rcgen::date_time_ymd(2090, 1, 1);
    world.dir.pair("server", &world.ca.sign(params));
    let snapshot = world.make(None).unwrap();
    assert!(!world.shown(&snapshot.warnings).contains("expires"), "{}", snapshot.warnings);
    let year_2090 = SystemTime::UNIX_EPOCH + Duration::from_secs(3_786_912_000);
    let said = expiring(&snapshot, year_2090);
    assert!(said[0].ends_with("server.pem` expires on 2090-01-01T00:00:00Z"), "{said:?}");
    let current = Arc::new(ArcSwapOption::from(Some(snapshot)));
    show(&world.builder.registry, current).unwrap();
    let path = world.dir.path().join("server.pem").display().to_string();
    let name = "tollgate_tls_certificate_not_after_timestamp_seconds";
    assert_eq!(world.builder.registry.value(name, &[("certificate", &path)]), Some(3_786_912_000.0));
}
