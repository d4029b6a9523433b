//! One TLS set-up for Postgres and RabbitMQ: rustls with ring, the system's trust store, and an extra CA file.

use handover_core::error::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::path::Path;
use std::sync::Arc;

/// Makes ring the process-wide provider, for libraries that build their own TLS configuration. Idempotent.
pub fn install() {
    // An error only says that a provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    install();
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// A client configuration that verifies the server's certificate and host name against the system's trust
/// store and, if given, the certificates of the PEM file `ca`.
///
/// # Errors
/// `Usage` when the file cannot be read, holds no certificate, or there is nothing to trust at all.
pub fn verifying(ca: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // Single certificates that the system stores in an odd form are skipped, as every TLS client does.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| {
                Error::usage(format!("a certificate in `{}` is not usable ({e})", path.display())).hint(
                    "give the PEM file of the certificate authority that signed the server's certificate",
                )
            })?;
        }
    }
    if roots.is_empty() {
        return Err(Error::usage("there is no trusted certificate authority on this machine")
            .hint("install the package `ca-certificates`, or name a CA file in the URL"));
    }
    Ok(builder()?.with_root_certificates(roots).with_no_client_auth())
}

/// A client configuration that encrypts but does not ask who the server is, as libpq does for
/// `sslmode=prefer` and `require` without a root certificate
/// (<https://www.postgresql.org/docs/current/libpq-ssl.html>).
///
/// # Errors
/// `Internal` when the provider lacks the protocol versions.
pub fn unverified() -> Result<ClientConfig> {
    Ok(builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(EncryptOnly(provider())))
        .with_no_client_auth())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("TLS could not be set up ({e})")))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unusable = |why: String| {
        Error::usage(format!("CA file `{}` cannot be used: {why}", path.display()))
            .hint("give a readable PEM file with at least one `BEGIN CERTIFICATE` block")
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(found)
}

/// Reads a CA file as PEM text, for libraries that take text, after checking that it holds certificates.
///
/// # Errors
/// `Usage` when the file cannot be read or holds no certificate.
pub fn ca_text(path: &Path) -> Result<String> {
    certificates(path)?;
    std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("CA file `{}` cannot be read: {e}", path.display()))
            .hint("make it readable for this user")
    })
}

/// Accepts any certificate but still checks the handshake's signatures.
#[derive(Debug)]
struct EncryptOnly(Arc<CryptoProvider>);

impl ServerCertVerifier for EncryptOnly {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_is_added_and_a_bad_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("ca.pem");
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(&good, certified.cert.pem()).unwrap();
        verifying(Some(&good)).unwrap();
        assert!(ca_text(&good).unwrap().contains("BEGIN CERTIFICATE"));

        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "nothing here\n").unwrap();
        let error = verifying(Some(&empty)).unwrap_err();
        assert!(error.message().contains("no certificate"), "{error}");
        assert!(verifying(Some(Path::new("/nonexistent/ca.pem"))).is_err());
        unverified().unwrap();
    }
}
