//! `tollgate ca`: manages an authority's folder from the command line.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Error,
    authority::{self, Authority, Names},
    certificate::{self, CertificateInfo},
    files::{self, PRIVATE, PUBLIC},
    rotation::{NEXT, Rotation, SPREAD, Stage},
    token::{Scope, Token},
};
use crate::{
    config::{
        spiffe::{SpiffeId, TrustDomain},
        units,
    },
    observe::access_log::timestamp,
};

const DAY: Duration = Duration::from_secs(86_400);

/// The subcommands of `tollgate ca`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Create a certificate authority: a folder with the root certificate, its key and the secret for join tokens.
    Init(InitArgs),
    /// Issue a certificate (an X.509-SVID) with a new key to a workload.
    ///
    /// Writes the certificate to NAME.pem and its private key to NAME.key (mode 0600), and replaces older files.
    Issue(IssueArgs),
    /// Create a join token, with which a workload requests its certificate from a proxy that has the folder.
    ///
    /// A token can be used any number of times until it expires; no record of it is kept. `--new-secret` revokes all
    /// existing tokens.
    Token(TokenArgs),
    /// Replace the root without downtime, in three steps; without a step, show the rotation's progress.
    ///
    /// `prepare` creates the next root and makes it trusted. Once all workloads know it (after five minutes),
    /// `switch` makes it the signing root. Once all certificates of the old root have expired, `retire` removes the
    /// old root. Proxies that sign with the folder, and proxies that get their certificates from them, follow
    /// automatically.
    Rotate(RotateArgs),
    /// Show the certificates in an authority's folder or in a file.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct Dir {
    /// The authority's folder.
    #[arg(long, default_value = "ca")]
    dir: PathBuf,
}

/// Arguments of `tollgate ca init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    dir: Dir,
    /// Set the trust domain: identities begin with `spiffe://NAME`.
    #[arg(long, value_name = "NAME", default_value = "mesh.local")]
    trust_domain: TrustDomain,
    /// Set the root's lifetime in days. No certificate outlives the root.
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace an existing root. This invalidates everything that it has signed; use `tollgate ca rotate` to avoid
    /// that. Fails while a proxy signs with the root.
    #[arg(long)]
    force: bool,
}

/// Arguments of `tollgate ca issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    #[command(flatten)]
    dir: Dir,
    /// Set the identity, such as spiffe://mesh.local/ns/default/sa/web.
    #[arg(long, value_name = "ID")]
    spiffe: SpiffeId,
    /// Add a DNS name; a leading `*.` matches one label. Can be repeated.
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// Add an IP address. Can be repeated.
    #[arg(long, value_name = "ADDR")]
    ip: Vec<IpAddr>,
    /// Set the lifetime: from 1s to a year, and at most the root's.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    ttl: units::Duration,
    /// Write to this existing folder, or to this path with `.pem` and `.key` appended. Default: the last part of the
    /// identity, in the current folder.
    #[arg(long, value_name = "DIR|PREFIX")]
    out: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `tollgate ca token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(flatten)]
    dir: Dir,
    /// Restrict the token to an identity, or to all below a path: spiffe://mesh.local/ns/default/*. Default: the
    /// whole trust domain.
    #[arg(long, value_name = "ID|PATH/*")]
    spiffe: Option<Scope>,
    /// Set the token's lifetime: up to a year. A workload needs a valid token for each renewal.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: units::Duration,
    /// Replace the secret first, which revokes all existing tokens.
    #[arg(long)]
    new_secret: bool,
    /// Write the token to a file (mode 0600) instead of standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `tollgate ca rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The authority's folder.
    #[arg(long, default_value = "ca", global = true)]
    dir: PathBuf,
    #[command(subcommand)]
    step: Option<Step>,
}

/// A step of a rotation.
#[derive(Debug, Subcommand)]
enum Step {
    /// Create the next root, trusted in addition to the one that signs.
    Prepare {
        /// Set the root's lifetime in days.
        #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make the next root the signing root.
    Switch {
        /// Do not wait until all workloads know the next root.
        #[arg(long)]
        now: bool,
    },
    /// Stop trusting the old root.
    Retire {
        /// Set the longest lifetime of certificates: `max_ttl` of the proxies that sign, and `--ttl` of `ca issue`.
        #[arg(long, value_name = "TIME", default_value = "24h")]
        ttl: units::Duration,
        /// Do not wait until the old root's certificates have expired.
        #[arg(long)]
        now: bool,
    },
}

/// Arguments of `tollgate ca show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Read this authority's folder or file with certificates (PEM).
    #[arg(default_value = "ca")]
    path: PathBuf,
    /// Print the certificates as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs a subcommand.
pub fn run(command: &CaCommand) -> anyhow::Result<()> {
    match command {
        CaCommand::Init(args) => init(args),
        CaCommand::Issue(args) => issue(args),
        CaCommand::Token(args) => token(args),
        CaCommand::Rotate(args) => rotate(args),
        CaCommand::Show(args) => show(args),
    }
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let (dir, domain) = (&args.dir.dir, &args.trust_domain);
    let created = Authority::create(dir, domain, DAY * args.days, args.force);
    let created = created.map_err(|e| match e {
        Error::Exists(_) => {
            anyhow::anyhow!(
                "{e}; use `tollgate ca rotate` to replace the root without downtime, or --force to replace it immediately and \
                 invalidate everything that it has signed"
            )
        }
        e => e.into(),
    })?;
    let at = |name| dir.join(name).display().to_string();
    let width = at(crate::config::admin::SECRET).len();
    let option = match dir.as_os_str() == "ca" {
        true => String::new(),
        false => format!(" --dir {}", dir.display()),
    };
    println!("created the certificate authority of {domain}, valid until {}", timestamp::text(created.not_after()));
    println!("  {:width$}  the root certificate: give it to everyone who verifies certificates", at(authority::ROOT));
    println!("  {:width$}  the root's private key: its holder can sign any certificate", at(crate::config::admin::KEY));
    println!(
        "  {:width$}  the secret for join tokens: its holder can create tokens for any identity",
        at(crate::config::admin::SECRET)
    );
    println!("next:");
    println!("  tollgate ca issue{option} --spiffe spiffe://{domain}/ns/default/sa/web  # issue a certificate");
    println!(
        "  tollgate ca token{option} --spiffe 'spiffe://{domain}/ns/default/*'  # let workloads request theirs from a proxy"
    );
    Ok(())
}

fn issue(args: &IssueArgs) -> anyhow::Result<()> {
    if args.ttl < units::Duration::secs(1) {
        bail!("--ttl {} is too short: must be at least 1s", args.ttl);
    }
    let authority = open(&args.dir.dir)?;
    let names = Names { spiffe: args.spiffe.clone(), dns: args.dns.clone(), ip: args.ip.clone() };
    let key = authority::new_key()?;
    let issued = authority.sign(&key, &names, args.ttl.0)?;
    let prefix = prefix(args);
    let [certificate, key_file] = ["pem", "key"].map(|ending| {
        let mut path = prefix.clone().into_os_string();
        path.push(format!(".{ending}"));
        PathBuf::from(path)
    });
    for file in [&certificate, &key_file] {
        if is_of_authority(&args.dir.dir, file) {
            bail!("`{}` belongs to the authority: choose another path with --out", file.display());
        }
    }
    let root = args.dir.dir.join(authority::ROOT);
    files::put(&key_file, &key.serialize_pem(), PRIVATE)?;
    files::put(&certificate, &issued.chain, PUBLIC)?;
    if args.json {
        let mut result = issued.facts.to_json();
        result["spiffe"] = json!(args.spiffe);
        result["certificate"] = json!(certificate);
        result["key"] = json!(key_file);
        result["root"] = json!(root);
        println!("{result:#}");
        return Ok(());
    }
    println!("signed {}", args.spiffe);
    print!("{}", text(&issued.facts));
    println!("  {}  the certificate; verify it with {}", certificate.display(), root.display());
    println!("  {}  its private key", key_file.display());
    Ok(())
}

/// Returns whether a file belongs to the authority: `--out ca/ca` would replace the root with a leaf certificate.
fn is_of_authority(dir: &Path, file: &Path) -> bool {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let same_folder = matches!((dir.canonicalize(), parent.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let name = file.file_name();
    same_folder
        && [authority::ROOT, crate::config::admin::KEY, crate::config::admin::SECRET, NEXT]
            .iter()
            .any(|own| name == Some(own.as_ref()))
}

/// Returns the path of a certificate's files, without extensions.
fn prefix(args: &IssueArgs) -> PathBuf {
    let name = args.spiffe.path().rsplit('/').next().unwrap_or_default();
    match &args.out {
        None => PathBuf::from(name),
        Some(out) if out.is_dir() => out.join(name),
        Some(out) => out.clone(),
    }
}

fn token(args: &TokenArgs) -> anyhow::Result<()> {
    let authority = open(&args.dir.dir)?;
    let domain = authority.trust_domain();
    let scope = args.spiffe.clone().unwrap_or_else(|| Scope::Below(domain.id()));
    if scope.trust_domain() != domain.as_str() {
        return Err(Error::TrustDomain { ours: domain.clone(), asked: scope.to_string() }.into());
    }
    if args.ttl.0 < Duration::from_secs(1) {
        bail!("--ttl {} is too short: must be at least 1s", args.ttl);
    }
    if args.new_secret {
        authority.renew_secret()?;
    }
    let token = Token::new(scope, args.ttl.0)?;
    let text = authority.secret()?.seal(&token);
    match &args.out {
        Some(path) => {
            let written = files::put_new(path, &format!("{text}\n"), PRIVATE);
            written.map_err(|e| match e {
                Error::Exists(_) => {
                    anyhow::anyhow!("{e} and is never overwritten: write to another path, then move the file")
                }
                e => e.into(),
            })?;
        }
        None => println!("{text}"),
    }
    // Diagnostics go to standard error: standard output may be redirected to the token's file.
    eprintln!("join token {} for {}, until {}", token.id, token.scope, timestamp::text(token.expires));
    Ok(())
}

fn rotate(args: &RotateArgs) -> anyhow::Result<()> {
    open(&args.dir)?;
    let rotation = Rotation::open(&args.dir)?;
    let dir = match args.dir.as_os_str() == "ca" {
        true => String::new(),
        false => format!(" --dir {}", args.dir.display()),
    };
    let authority = match &args.step {
        None => {
            match rotation.stage()? {
                Stage::Settled => {
                    println!("no rotation in progress; start one with `tollgate ca rotate{dir} prepare`")
                }
                Stage::Prepared(since) => println!(
                    "the next root has been trusted since {}; `tollgate ca rotate{dir} switch` makes it the signing root",
                    timestamp::text(since)
                ),
                Stage::Switched(since) => println!(
                    "the next root has been signing since {}; `tollgate ca rotate{dir} retire` removes the old one",
                    timestamp::text(since)
                ),
            }
            return Ok(());
        }
        Some(Step::Prepare { days }) => {
            let authority = rotation.prepare(DAY * *days)?;
            println!("the next root is trusted in addition to the one that signs");
            println!(
                "in {} minutes, when all workloads know it: tollgate ca rotate{dir} switch",
                SPREAD.as_secs() / 60
            );
            authority
        }
        Some(Step::Switch { now }) => {
            let authority = rotation.switch(*now)?;
            println!("the next root signs; the old root is still trusted");
            println!("when all certificates of the old root have expired: tollgate ca rotate{dir} retire");
            authority
        }
        Some(Step::Retire { ttl, now }) => {
            let authority = rotation.retire(ttl.0, *now)?;
            println!("the old root is no longer trusted");
            authority
        }
    };
    println!("  signing  {}, until {}", authority.signing().subject, timestamp::text(authority.not_after()));
    Ok(())
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let (domain, file) = match args.path.is_dir() {
        true => (Some(open(&args.path)?.trust_domain().clone()), args.path.join(authority::ROOT)),
        false => (None, args.path.clone()),
    };
    let pem = files::read(&file)?;
    let all = certificate::all_in(&pem).map_err(|what| Error::content(&file, what))?;
    if args.json {
        let certificates: Vec<Value> = all.iter().map(CertificateInfo::to_json).collect();
        let domain = domain.as_ref().map(TrustDomain::as_str);
        println!("{:#}", json!({ "file": file, "trust_domain": domain, "certificates": certificates }));
        return Ok(());
    }
    if let Some(domain) = domain {
        println!("the certificate authority of {domain}");
    }
    for (nth, facts) in all.iter().enumerate() {
        println!("{}, certificate {} of {}", file.display(), nth + 1, all.len());
        print!("{}", text(facts));
    }
    Ok(())
}

fn open(dir: &Path) -> anyhow::Result<Authority> {
    let help = || format!("there is no certificate authority in `{}`; `tollgate ca init` creates one", dir.display());
    let authority = match dir.join(authority::ROOT).exists() {
        true => Authority::open(dir)?,
        false => Authority::open(dir).with_context(help)?,
    };
    for (name, what) in [
        (crate::config::admin::KEY, "the authority's private key"),
        (crate::config::admin::SECRET, "the secret of join tokens"),
    ] {
        let path = dir.join(name);
        if crate::files::is_exposed(&path) {
            eprintln!("warning: every user on this machine can read {what} in `{}`: chmod 600", path.display());
        }
    }
    Ok(authority)
}

/// Formats the fields of a certificate, one a line.
fn text(facts: &CertificateInfo) -> String {
    let now = SystemTime::now();
    let state = match (facts.is_valid_at(now), now < facts.not_before) {
        (true, _) => "",
        (false, true) => " (not yet valid)",
        (false, false) => " (expired)",
    };
    let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let rights = if facts.is_ca { "signs other certificates" } else { "server and client" };
    format!(
        "  names    {}\n  subject  {}\n  issuer   {}\n  serial   {}\n  from     {}\n  until    {}{state}\n  use      {rights}\n  sha256   {}\n",
        or_none(&facts.names.join(", ")),
        or_none(&facts.subject),
        or_none(&facts.issuer),
        facts.serial,
        timestamp::text(facts.not_before),
        timestamp::text(facts.not_after),
        facts.fingerprint,
    )
}
