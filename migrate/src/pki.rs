//! `pki init` and `pki issue`: an authority, and certificates that name a peer of Gantry.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use proto::identity::{Identity, Role};
use proto::tls::{Tls, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::exit::{Exit, Failure};

/// How long an authority is valid.
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long before now a certificate begins to be valid: hosts' clocks differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// `migrate pki ...`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an authority: ca.crt and ca.key.
    Init {
        /// Directory for its files; created.
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
    },
    /// Make a peer's certificate: ca.crt, tls.crt and tls.key.
    #[command(after_help = "Examples:
  migrate pki init --dir /etc/gantry/ca
  migrate pki issue --dir /etc/gantry/ca --role node node-a --out ./node-a
  migrate pki issue --dir /etc/gantry/ca --role admin alice --valid-for 30d
  migrate pki issue --dir /etc/gantry/ca --role node node-a --out /etc/gantry/node-a --renew")]
    Issue {
        /// The peer's name: a node's is the one that it joins with.
        name: String,
        /// What the peer is: node, coordinator, admin or viewer.
        #[arg(long)]
        role: Role,
        /// The authority's directory.
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
        /// Directory for the peer's files; created [default: DIR/NAME.ROLE].
        #[arg(long)]
        out: Option<PathBuf>,
        /// How long the certificate is valid.
        #[arg(long, default_value = "365d", value_parser = humantime::parse_duration)]
        valid_for: Duration,
        /// Replace the certificate and key in --out. A daemon that uses them takes the new ones within ten seconds.
        #[arg(long)]
        renew: bool,
    },
}

/// Does what the command says.
pub(crate) fn run(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Init { dir } => {
            Authority::init(dir).map_err(|error| Failure::local("make an authority", &error))?;
            println!("{}", dir.join("ca.crt").display());
        }
        Command::Issue { name, role, dir, out, valid_for, renew } => {
            let tried = format!("issue a certificate for {role}/{name}");
            let identity = Identity::new(*role, name).map_err(|error| Failure::usage(&tried, error))?;
            let out = out.clone().unwrap_or_else(|| dir.join(format!("{name}.{role}")));
            let issued = Authority::load(dir).and_then(|authority| {
                if *renew {
                    authority.renew(&identity, *valid_for, &out)
                } else {
                    authority.issue(&identity, *valid_for, &out)
                }
            });
            let files = issued.map_err(|error| Failure::local(&tried, &error))?;
            println!("{}", files.cert.display());
        }
    }
    Ok(Exit::Ok)
}

/// An authority's two files in a directory: `ca.crt`, and `ca.key` that only its owner can read.
#[derive(Debug)]
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

fn ca_files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("ca.crt"), dir.join("ca.key"))
}

/// Creates `path` with `content`; an existing file is left alone and is an error.
fn create(path: &Path, mode: u32, content: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(content.as_bytes()).with_context(|| format!("write {}", path.display()))
}

fn create_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {}", dir.display()))
}

fn params(name: &str, names: Vec<String>, validity: Duration) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + validity).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

impl Authority {
    /// Makes a new authority in `dir`, which is created.
    ///
    /// After Err no file that was there before has changed.
    pub(crate) fn init(dir: &Path) -> Result<Self> {
        create_dir(dir)?;
        let (certificate_path, key_path) = ca_files(dir);
        if certificate_path.exists() {
            bail!(
                "{} exists already: certificates of a new authority would not be trusted by its peers",
                certificate_path.display()
            );
        }
        let key = KeyPair::generate().context("generate a key")?;
        let mut params = params("Gantry authority", Vec::new(), CA_VALIDITY)?;
        // It signs peers and nothing else: no intermediates.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("sign the authority")?.pem();
        create(&key_path, 0o600, &key.serialize_pem())?;
        create(&certificate_path, 0o644, &certificate)?;
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads the authority in `dir`.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let (certificate_path, key_path) = ca_files(dir);
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let certificate = read(&certificate_path)?;
        let key =
            KeyPair::from_pem(&read(&key_path)?).with_context(|| format!("parse {}", key_path.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .with_context(|| format!("parse {}", certificate_path.display()))?;
        Ok(Self { certificate, issuer })
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` (0600) for a peer into `out`, which is created.
    ///
    /// After Err no file that was there before has changed.
    pub(crate) fn issue(&self, identity: &Identity, validity: Duration, out: &Path) -> Result<TlsFiles> {
        create_dir(out)?;
        let files = TlsFiles::in_dir(out);
        for path in [&files.cert, &files.key] {
            if path.exists() {
                bail!("{} exists already: choose another --out, or remove it", path.display());
            }
        }
        let (certificate, key) = self.sign(identity, validity)?;
        create(&files.key, 0o600, &key)?;
        create(&files.cert, 0o644, &certificate)?;
        if !files.ca.exists() {
            create(&files.ca, 0o644, &self.certificate)?;
        }
        Ok(files)
    }

    /// Replaces the certificate and key of `identity` in `out`, one after the other: whoever reads them in between finds
    /// that they do not belong together.
    ///
    /// After Err at most the key has changed.
    pub(crate) fn renew(&self, identity: &Identity, validity: Duration, out: &Path) -> Result<TlsFiles> {
        let files = TlsFiles::in_dir(out);
        let old = Tls::load(&files).context("there is nothing to renew: leave --renew away")?;
        if old.identity() != identity {
            bail!("{} is of {}", files.cert.display(), old.identity());
        }
        let trusted =
            fs::read_to_string(&files.ca).with_context(|| format!("read {}", files.ca.display()))?;
        if !trusted.contains(self.certificate.trim()) {
            bail!(
                "{} does not hold this authority: add it to that file on every host first, so that its certificates are taken",
                files.ca.display()
            );
        }
        let (certificate, key) = self.sign(identity, validity)?;
        for (path, mode, content) in [(&files.key, 0o600, key), (&files.cert, 0o644, certificate)] {
            let new = path.with_extension("new");
            // Left by somebody who was cut off.
            let _ = fs::remove_file(&new);
            create(&new, mode, &content)?;
            fs::rename(&new, path).with_context(|| format!("replace {}", path.display()))?;
        }
        Ok(files)
    }

    /// A certificate of `identity` and its key, PEM.
    fn sign(&self, identity: &Identity, validity: Duration) -> Result<(String, String)> {
        let key = KeyPair::generate().context("generate a key")?;
        let mut params = params(&identity.to_string(), vec![identity.dns_name()], validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Agents and the coordinator are both servers and clients of one another.
        params.extended_key_usages = match identity.role() {
            Role::Node | Role::Coordinator => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Role::Admin | Role::Viewer => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).context("sign the certificate")?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn issued_certificates_load_and_name_their_peer() {
        let dir = tempfile::tempdir().unwrap();
        Authority::init(&dir.path().join("ca")).unwrap();
        let authority = Authority::load(&dir.path().join("ca")).unwrap();
        for role in Role::ALL {
            let identity = Identity::new(role, "node-a").unwrap();
            let out = dir.path().join(role.as_str());
            let files = authority.issue(&identity, Duration::from_secs(3600), &out).unwrap();
            assert_eq!(Tls::load(&files).unwrap().identity(), &identity);
            assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let mode = fs::metadata(dir.path().join("ca/ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path()).unwrap();
        let before = fs::read(dir.path().join("ca.key")).unwrap();
        assert!(Authority::init(dir.path()).is_err());
        assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), before);

        let identity = Identity::new(Role::Admin, "me").unwrap();
        let out = dir.path().join("me");
        let files = authority.issue(&identity, Duration::from_secs(60), &out).unwrap();
        let before = fs::read(&files.key).unwrap();
        assert!(authority.issue(&identity, Duration::from_secs(60), &out).is_err());
        assert_eq!(fs::read(&files.key).unwrap(), before);
    }

    #[test]
    fn a_renewed_certificate_is_of_the_same_peer_and_of_an_authority_that_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("ca")).unwrap();
        let identity = Identity::new(Role::Node, "node-a").unwrap();
        let out = dir.path().join("node-a");
        let hour = Duration::from_secs(3600);
        assert!(authority.renew(&identity, hour, &out).is_err());
        let files = authority.issue(&identity, hour, &out).unwrap();
        let before = (fs::read(&files.key).unwrap(), Tls::load(&files).unwrap().ends());

        let other = Authority::init(&dir.path().join("other")).unwrap();
        let error = other.renew(&identity, hour, &out).unwrap_err().to_string();
        assert!(error.contains("does not hold this authority"), "{error}");
        let node_b = Identity::new(Role::Node, "node-b").unwrap();
        assert!(authority.renew(&node_b, hour, &out).unwrap_err().to_string().contains("is of node/node-a"));
        assert_eq!(fs::read(&files.key).unwrap(), before.0);

        authority.renew(&identity, 2 * hour, &out).unwrap();
        let renewed = Tls::load(&files).unwrap();
        assert!(renewed.identity() == &identity && renewed.ends() > before.1);
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
    }
}
