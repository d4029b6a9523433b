//! TLS in front of a server that speaks none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A proxy on 127.0.0.1 with a certificate for `localhost` that nobody's trust store knows. It ends with the
/// test's runtime.
pub struct TlsProxy {
    pub port: u16,
    pub ca: PathBuf,
    _folder: tempfile::TempDir,
}

/// Who begins to speak TLS.
#[derive(Clone, Copy, PartialEq)]
pub enum Begin {
    /// The client's first byte is TLS.
    AtOnce,
    /// As Postgres does it: after an SSLRequest
    /// (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>).
    AfterRequest,
}

impl TlsProxy {
    pub async fn start(to: u16, begin: Begin) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        handover_postgres::tls::install();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, acceptor.clone(), to, begin));
            }
        });
        TlsProxy { port, ca, _folder: folder }
    }

    /// A URL of the server, led through here, with parameters such as `sslmode=require`.
    pub fn through(&self, url: &str, parameters: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_host(Some("localhost")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        format!("{url}?{parameters}")
    }

    /// The CA file as a URL holds it.
    pub fn ca(&self) -> &Path {
        &self.ca
    }
}

/// Serves one connection; what goes wrong is the client's to report.
async fn serve(mut stream: TcpStream, acceptor: TlsAcceptor, to: u16, begin: Begin) -> Option<()> {
    if begin == Begin::AfterRequest {
        let mut request = [0_u8; 8];
        stream.read_exact(&mut request).await.ok()?;
        stream.write_all(b"S").await.ok()?;
    }
    let mut client = acceptor.accept(stream).await.ok()?;
    let mut server = TcpStream::connect(("127.0.0.1", to)).await.ok()?;
    copy_bidirectional(&mut client, &mut server).await.ok()?;
    Some(())
}
