//! The service that the demo upgrades: a small OAuth server that issues, introspects, refreshes and revokes
//! tokens over HTTP, and that a cutover can flip.
//!
//! A request is held only between the service's own prepare and its commit or abort, and only if it writes.
//! Nothing is tried twice.

mod backend;
mod gate;
mod release;

pub use backend::{Backend, Pair, Seen};
pub use gate::{Gate, Hold, Sides, State};
pub use release::Release;

use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use handover_core::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

type Answer = (StatusCode, Json<Value>);

#[derive(Deserialize)]
struct Issue {
    client: String,
    subject: String,
    tenant: String,
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

#[derive(Deserialize)]
struct Lifetime {
    seconds: u32,
}

#[derive(Deserialize)]
struct Target {
    release: Release,
}

/// Serves on a free port of the loopback address; gives the service's URL.
///
/// # Errors
/// When no port can be had.
pub async fn serve(gate: Arc<Gate>) -> Result<(String, JoinHandle<()>)> {
    let cannot = |e: std::io::Error| {
        Error::external(format!("the demo's service cannot listen: {e}"))
            .hint("the loopback address must be usable")
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(cannot)?;
    let url = format!("http://{}", listener.local_addr().map_err(cannot)?);
    let router = Router::new()
        .route("/issue", post(issue))
        .route("/introspect", post(introspect))
        .route("/refresh", post(refresh))
        .route("/revoke", post(revoke))
        .route("/admin", get(state))
        .route("/admin/check/{release}", get(check))
        .route("/admin/prepare", post(prepare))
        .route("/admin/commit", post(commit))
        .route("/admin/abort", post(abort))
        .route("/admin/lifetime", get(lifetime).put(set_lifetime))
        .with_state(gate);
    let task = tokio::spawn(async move {
        // Ends only with the process, or when the demo aborts the task.
        let _ = axum::serve(listener, router).await;
    });
    Ok((url, task))
}

fn answer(result: Result<Value>) -> Answer {
    match result {
        Ok(value) => (StatusCode::OK, Json(value)),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": e.message() }))),
    }
}

fn tokens(pair: &Pair) -> Value {
    json!({ "access_token": pair.access, "refresh_token": pair.refresh })
}

async fn issue(Shared(gate): Shared<Arc<Gate>>, Json(ask): Json<Issue>) -> Answer {
    let (_pass, backend) = gate.enter().await;
    answer(backend.issue(&ask.client, &ask.subject, &ask.tenant).await.map(|pair| tokens(&pair)))
}

async fn introspect(Shared(gate): Shared<Arc<Gate>>, Json(ask): Json<Token>) -> Answer {
    let backend = gate.serving();
    answer(backend.introspect(&ask.token).await.map(|seen| match seen {
        Some(Seen { active: true, subject, claims }) => {
            json!({ "active": true, "sub": subject, "ext": claims })
        }
        Some(_) => json!({ "active": false, "known": true }),
        None => json!({ "active": false, "known": false }),
    }))
}

async fn refresh(Shared(gate): Shared<Arc<Gate>>, Json(ask): Json<Token>) -> Answer {
    let (_pass, backend) = gate.enter().await;
    match backend.refresh(&ask.token).await {
        Ok(Some(pair)) => answer(Ok(tokens(&pair))),
        Ok(None) => (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" }))),
        Err(e) => answer(Err(e)),
    }
}

async fn revoke(Shared(gate): Shared<Arc<Gate>>, Json(ask): Json<Token>) -> Answer {
    let (_pass, backend) = gate.enter().await;
    answer(backend.revoke(&ask.token).await.map(|found| json!({ "found": found })))
}

fn told(result: Result<State>) -> Answer {
    answer(result.map(|state| json!(state)))
}

async fn state(Shared(gate): Shared<Arc<Gate>>) -> Answer {
    told(Ok(gate.state()))
}

async fn check(Shared(gate): Shared<Arc<Gate>>, Path(release): Path<Release>) -> Answer {
    told(gate.check(release).await)
}

async fn prepare(Shared(gate): Shared<Arc<Gate>>, Json(ask): Json<Target>) -> Answer {
    told(gate.prepare(ask.release).await)
}

async fn commit(Shared(gate): Shared<Arc<Gate>>, Json(ask): Json<Target>) -> Answer {
    told(gate.commit(ask.release).await)
}

async fn abort(Shared(gate): Shared<Arc<Gate>>) -> Answer {
    told(Ok(gate.abort().await))
}

async fn lifetime(Shared(gate): Shared<Arc<Gate>>) -> Answer {
    let (_pass, backend) = gate.enter().await;
    answer(backend.lifetime().await.map(|seconds| json!({ "seconds": seconds })))
}

async fn set_lifetime(Shared(gate): Shared<Arc<Gate>>, Json(ask): Json<Lifetime>) -> Answer {
    let (_pass, backend) = gate.enter().await;
    answer(backend.set_lifetime(ask.seconds).await.map(|()| json!({ "seconds": ask.seconds })))
}
