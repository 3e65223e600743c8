//! The certificate of the public listener: one from files, or one that we sign ourselves.

use crate::{config::Tls, layout::Layout};
use anyhow::{Context, bail, ensure};
use chrono::{Datelike, Utc};
use rcgen::{CertificateParams, CertifiedKey, DnType, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::rustls::ServerConfig;

/// Years that a certificate of our own is good for, and from how many before its end it is replaced.
const YEARS: i32 = 2;

/// What the public listener shows.
pub struct Identity {
    /// For the acceptor.
    pub config: Arc<ServerConfig>,
    /// What clients on this machine must trust besides the usual authorities, if anything.
    pub trust: Option<PathBuf>,
}

/// The configured certificate; `None`: connections are in clear.
///
/// # Errors
/// A file is missing, is no certificate or key, or the two do not belong together.
pub fn identity(tls: &Tls, layout: &Layout, ip: IpAddr) -> anyhow::Result<Option<Identity>> {
    match (tls.cert.is_empty(), tls.key.is_empty(), tls.self_signed) {
        (true, true, false) => Ok(None),
        (true, true, true) => own(layout, ip).map(Some),
        (false, false, false) => from_files(Path::new(&tls.cert), Path::new(&tls.key))
            .map(|config| Some(Identity { config, trust: None })),
        (_, _, true) => bail!("a self-signed certificate and one from files cannot be shown both; name one"),
        (false, true, _) => bail!("there is a certificate and no key; name it with --tls-key or [tls] key"),
        (true, false, _) => bail!("there is a key and no certificate; name it with --tls-cert or [tls] cert"),
    }
}

fn from_files(cert: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(cert)
        .with_context(|| format!("the certificate {} cannot be read", cert.display()))?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is no certificate in PEM", cert.display()))?;
    ensure!(!chain.is_empty(), "{} holds no certificate; it begins with BEGIN CERTIFICATE", cert.display());
    let secret = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("{} is no private key in PEM", key.display()))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .with_context(|| format!("{} and {} cannot be used together", cert.display(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A certificate in `DATA/tls`, made when there is none for these names and this year.
fn own(layout: &Layout, ip: IpAddr) -> anyhow::Result<Identity> {
    let folder = layout.join("tls");
    let (cert, key, about) = (folder.join("cert.pem"), folder.join("key.pem"), folder.join("names"));
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !ip.is_unspecified() && !ip.is_loopback() {
        names.push(ip.to_string());
    }
    if let Ok(Ok(host)) = nix::unistd::gethostname().map(std::ffi::OsString::into_string) {
        names.push(host);
    }
    let year = Utc::now().year();
    let wanted = format!("{year} {}", names.join(" "));
    let known = fs::read_to_string(&about).is_ok_and(|found| found == wanted);
    if !known || !cert.exists() || !key.exists() {
        crate::layout::private(&folder)?;
        let CertifiedKey { cert: made, signing_key } = sign(names, year)?;
        crate::instance::replace(&key, signing_key.serialize_pem().as_bytes())?;
        crate::instance::replace(&cert, made.pem().as_bytes())?;
        crate::instance::replace(&about, wanted.as_bytes())?;
        tracing::info!("made a certificate of our own in {}", folder.display());
    }
    Ok(Identity { config: from_files(&cert, &key)?, trust: Some(cert) })
}

fn sign(names: Vec<String>, year: i32) -> anyhow::Result<CertifiedKey<KeyPair>> {
    let signing_key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Gantry on this machine");
    params.not_before = rcgen::date_time_ymd(year, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + YEARS, 1, 1);
    let cert = params.self_signed(&signing_key)?;
    Ok(CertifiedKey { cert, signing_key })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_owned();
        let layout = Layout { run: data.clone(), data };
        (dir, layout)
    }

    #[test]
    fn a_certificate_of_our_own_is_kept_until_its_names_change() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (_dir, layout) = layout();
        let tls = Tls { self_signed: true, ..Tls::default() };
        let read = || fs::read_to_string(layout.join("tls").join("cert.pem")).unwrap();
        let loopback = "127.0.0.1".parse().unwrap();
        identity(&tls, &layout, loopback).unwrap().unwrap();
        let first = read();
        identity(&tls, &layout, loopback).unwrap().unwrap();
        assert_eq!(read(), first);
        identity(&tls, &layout, "192.0.2.7".parse().unwrap()).unwrap().unwrap();
        assert_ne!(read(), first);
    }

    #[test]
    fn half_a_certificate_says_what_is_missing() {
        let (_dir, layout) = layout();
        let tls = Tls { cert: "/nowhere/cert.pem".into(), ..Tls::default() };
        let error = identity(&tls, &layout, "127.0.0.1".parse().unwrap()).err().unwrap().to_string();
        assert!(error.contains("--tls-key"), "{error}");
        let tls = Tls { key: "/nowhere/key.pem".into(), ..tls };
        let error = identity(&tls, &layout, "127.0.0.1".parse().unwrap()).err().unwrap().to_string();
        assert!(error.contains("/nowhere/cert.pem"), "{error}");
    }
}
