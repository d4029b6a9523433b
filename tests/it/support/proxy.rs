//! A proxy before a Postgres server that can be told to misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the proxy does besides passing bytes on. Each switch may be set at any time.
#[derive(Default)]
pub struct Switches {
    /// Cuts the connection once, instead of passing on the server's answer to an INSERT.
    pub cut_after_insert: AtomicBool,
    /// Passes nothing on, in neither direction, and keeps all connections open.
    pub hang: AtomicBool,
    /// How many of its connections, from the first on, pass nothing on any more and stay open.
    pub buried: AtomicUsize,
    /// How many connections there have been.
    pub accepted: AtomicUsize,
    /// Drops the parameter `options` of new connections, as poolers may be set to do.
    pub drop_options: AtomicBool,
}

/// A proxy on 127.0.0.1; it ends with the test's runtime.
pub struct Proxy {
    pub port: u16,
    pub switches: Arc<Switches>,
}

impl Proxy {
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let switches = Arc::new(Switches::default());
        let shared = switches.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(client, to, number, shared.clone()));
            }
        });
        Proxy { port, switches }
    }

    /// Lets every connection that there is go silent, as a network does that lost its memory of them.
    pub fn bury(&self) {
        self.switches.buried.store(self.switches.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// A URL of the server, led through here and without TLS.
    pub fn through(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_port(Some(self.port)).unwrap();
        format!("{url}?sslmode=disable")
    }
}

async fn serve(mut client: TcpStream, to: u16, number: usize, switches: Arc<Switches>) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", to)).await.ok()?;
    let length = client.read_u32().await.ok()?;
    let mut start = vec![0; length as usize - 4];
    client.read_exact(&mut start).await.ok()?;
    if switches.drop_options.load(Ordering::SeqCst) && start.starts_with(&[0, 3, 0, 0]) {
        start = without_options(&start);
    }
    server.write_u32(u32::try_from(start.len()).unwrap() + 4).await.ok()?;
    server.write_all(&start).await.ok()?;

    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            n = client.read(&mut up) => {
                wait(number, &switches).await;
                server.write_all(&up[..n.ok().filter(|n| *n > 0)?]).await.ok()?;
            }
            n = server.read(&mut down) => {
                wait(number, &switches).await;
                let answer = &down[..n.ok().filter(|n| *n > 0)?];
                let inserted = answer.windows(11).any(|part| part == b"INSERT 0 1\0");
                if inserted && switches.cut_after_insert.swap(false, Ordering::SeqCst) {
                    return None;
                }
                client.write_all(answer).await.ok()?;
            }
        }
    }
}

async fn wait(number: usize, switches: &Switches) {
    while switches.hang.load(Ordering::SeqCst) || number < switches.buried.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A StartupMessage's body (version, then pairs of texts, each ended by a zero) without one pair.
fn without_options(start: &[u8]) -> Vec<u8> {
    let texts: Vec<&[u8]> = start[4..].split(|byte| *byte == 0).collect();
    let mut out = start[..4].to_vec();
    for pair in texts.chunks(2).filter(|pair| pair.len() == 2 && !pair[0].is_empty() && pair[0] != b"options")
    {
        for text in pair {
            out.extend_from_slice(text);
            out.push(0);
        }
    }
    out.push(0);
    out
}
