//! `tollgate ca`: the authority's folder, by hand.

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

/// The command line.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a root: a folder with its certificate, its key, and the secret for join tokens.
    Init(InitArgs),
    /// Sign a certificate for a workload (an X.509-SVID), with a key that is made for it.
    ///
    /// It writes NAME.pem, the certificate, and NAME.key, its private key (mode 0600), in place of older ones.
    Issue(IssueArgs),
    /// Make a join token: what a workload shows to get its certificate from a proxy that has the folder.
    ///
    /// It can be used any number of times until it ends, and no record is kept of it. `--new-secret` ends all tokens that
    /// there are, at once.
    Token(TokenArgs),
    /// Replace the root without a gap, in three steps; without one, show how far that is.
    ///
    /// `prepare` makes the next root and lets it be trusted. When all know it (after five minutes), `switch` lets it sign. When all
    /// certificates of the old one have ended, `retire` ends the trust in that. Proxies that sign with the folder, and those that have
    /// their certificates from them, follow by themselves.
    Rotate(RotateArgs),
    /// Show what is in an authority's folder, or in a file with certificates.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct Dir {
    /// The authority's folder.
    #[arg(long, default_value = "ca")]
    dir: PathBuf,
}

/// Of `tollgate ca init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    dir: Dir,
    /// The trust domain: identities begin with `spiffe://` and its name.
    #[arg(long, value_name = "NAME", default_value = "mesh.local")]
    trust_domain: TrustDomain,
    /// How long the root holds. No certificate outlives it.
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace a root that is there. Nothing that it has signed is worth anything afterwards; `tollgate ca rotate` replaces it without
    /// that. Refused while a proxy signs with it.
    #[arg(long)]
    force: bool,
}

/// Of `tollgate ca issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    #[command(flatten)]
    dir: Dir,
    /// The identity, such as spiffe://mesh.local/ns/default/sa/web.
    #[arg(long, value_name = "ID")]
    spiffe: SpiffeId,
    /// A DNS name that it is also for; `*.` before it stands for one label. Can be given more than once.
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// An address that it is also for. Can be given more than once.
    #[arg(long, value_name = "ADDR")]
    ip: Vec<IpAddr>,
    /// How long it holds: from 1s to a year, and not longer than the root.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    ttl: units::Duration,
    /// Where to write: a folder that is there, or a path to which `.pem` and `.key` are added. Default: the last part of the
    /// identity, in the current folder.
    #[arg(long, value_name = "DIR|PREFIX")]
    out: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Of `tollgate ca token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(flatten)]
    dir: Dir,
    /// The identity that it is for, or all below a path: spiffe://mesh.local/ns/default/*. Default: all of the trust domain.
    #[arg(long, value_name = "ID|PATH/*")]
    spiffe: Option<Scope>,
    /// How long it can be used: up to a year. A workload needs it for each renewal.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: units::Duration,
    /// End all tokens that were made until now: put another secret in the place of the one that they were made with.
    #[arg(long)]
    new_secret: bool,
    /// Write it into a file (mode 0600) instead of to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Of `tollgate ca rotate`.
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
    /// Make the next root, and let it be trusted beside the one that signs.
    Prepare {
        /// How long the root holds.
        #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Let the next root sign.
    Switch {
        /// Do not wait until all know it.
        #[arg(long)]
        now: bool,
    },
    /// End the trust in the old root.
    Retire {
        /// How long certificates live at most: `max_ttl` of the proxies that sign, and what was given to `ca issue`.
        #[arg(long, value_name = "TIME", default_value = "24h")]
        ttl: units::Duration,
        /// Do not wait until the old root's certificates have ended.
        #[arg(long)]
        now: bool,
    },
}

/// Of `tollgate ca show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An authority's folder, or a file with certificates (PEM).
    #[arg(default_value = "ca")]
    path: PathBuf,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
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
    let made = Authority::create(dir, domain, DAY * args.days, args.force);
    let made = made.map_err(|e| match e {
        Error::Exists(_) => {
            anyhow::anyhow!(
                "{e}; `tollgate ca rotate` replaces a root without a gap, --force at once, and then all that it has signed is worth \
                 nothing"
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
    println!("made the certificate authority of {domain}, good until {}", timestamp::text(made.not_after()));
    println!("  {:width$}  its certificate, for all who check others'", at(authority::ROOT));
    println!("  {:width$}  its key: whoever has it is the authority", at(crate::config::admin::KEY));
    println!(
        "  {:width$}  the secret of join tokens: whoever has it gets any certificate",
        at(crate::config::admin::SECRET)
    );
    println!("next:");
    println!("  tollgate ca issue{option} --spiffe spiffe://{domain}/ns/default/sa/web  # a certificate, by hand");
    println!(
        "  tollgate ca token{option} --spiffe 'spiffe://{domain}/ns/default/*'  # for those who ask a proxy for theirs"
    );
    Ok(())
}

fn issue(args: &IssueArgs) -> anyhow::Result<()> {
    if args.ttl < units::Duration::secs(1) {
        bail!("--ttl {} is too short: a certificate lives at least 1s", args.ttl);
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
            bail!("`{}` is the authority's own: write elsewhere, with --out", file.display());
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
    println!("  {}  the certificate; those who check it need {}", certificate.display(), root.display());
    println!("  {}  its private key", key_file.display());
    Ok(())
}

/// Whether a file is one of those that the authority consists of. `--out ca/ca` would put a leaf in the root's place.
fn is_of_authority(dir: &Path, file: &Path) -> bool {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let same_folder = matches!((dir.canonicalize(), parent.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let name = file.file_name();
    same_folder
        && [authority::ROOT, crate::config::admin::KEY, crate::config::admin::SECRET, NEXT]
            .iter()
            .any(|own| name == Some(own.as_ref()))
}

/// The path of a certificate's files, without their endings.
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
        bail!("--ttl {} is too short", args.ttl);
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
                Error::Exists(_) => anyhow::anyhow!("{e}, and is not replaced: write elsewhere, and move it there"),
                e => e.into(),
            })?;
        }
        None => println!("{text}"),
    }
    // Not a part of the token: standard output may be a file.
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
                    println!("one root, which signs; `tollgate ca rotate{dir} prepare` makes the next one")
                }
                Stage::Prepared(since) => println!(
                    "the next root is trusted since {}; `tollgate ca rotate{dir} switch` lets it sign",
                    timestamp::text(since)
                ),
                Stage::Switched(since) => println!(
                    "the next root signs since {}; `tollgate ca rotate{dir} retire` ends the trust in the old one",
                    timestamp::text(since)
                ),
            }
            return Ok(());
        }
        Some(Step::Prepare { days }) => {
            let authority = rotation.prepare(DAY * *days)?;
            println!("the next root is trusted, beside the one that signs");
            println!("next, in {} minutes, when all know it: tollgate ca rotate{dir} switch", SPREAD.as_secs() / 60);
            authority
        }
        Some(Step::Switch { now }) => {
            let authority = rotation.switch(*now)?;
            println!("the next root signs; the old one is still trusted");
            println!("next, when all certificates of the old one have ended: tollgate ca rotate{dir} retire");
            authority
        }
        Some(Step::Retire { ttl, now }) => {
            let authority = rotation.retire(ttl.0, *now)?;
            println!("the old root is not trusted any more");
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
    let help = || format!("there is no certificate authority in `{}`; `tollgate ca init` makes one", dir.display());
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
            eprintln!("warning: everybody on this machine can read {what} in `{}`: chmod 600", path.display());
        }
    }
    Ok(authority)
}

/// What a certificate says, line by line.
fn text(facts: &CertificateInfo) -> String {
    let now = SystemTime::now();
    let state = match (facts.is_valid_at(now), now < facts.not_before) {
        (true, _) => "",
        (false, true) => " (not yet)",
        (false, false) => " (ended)",
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
