//! A replication as the copy that it follows sees it.

use crate::link::Link;
use crate::options::Replicate;
use crate::{identity, origin, preflight, watch};
use async_trait::async_trait;
use handover_copy::{Beginning, Copy, Follower, roots};
use handover_core::error::{Error, Result};
use handover_port::{Description, Port};
use handover_postgres::{Session, TableName};
use std::collections::BTreeSet;

/// The replication that follows a copy, for the copy's own step.
pub struct Following<'a> {
    /// The copy's port.
    pub port: &'a Port,
    /// What the plan says of the replication.
    pub replicate: &'a Replicate,
    /// The replication.
    pub link: Link,
}

#[async_trait]
impl Follower for Following<'_> {
    async fn look(&self, copy: &Copy, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
        let tables = preflight::look(self.replicate, copy, &self.port.databases, blue, green, out).await?;
        // What the catalogs show need not be tried; and what they refuse could not be.
        if out.blockers.is_empty() {
            let roots = roots(blue, copy).await?;
            let published: BTreeSet<&TableName> = tables.iter().map(|t| roots.get(t).unwrap_or(t)).collect();
            let published: Vec<TableName> = published.into_iter().cloned().collect();
            identity::rehearse(self.port, &self.link, &published, out).await?;
        }
        Ok(())
    }

    async fn begin(&self, copy: &Copy) -> Result<Box<dyn Beginning>> {
        Ok(Box::new(origin::prepare(self.port, self.replicate, copy, &self.link).await?))
    }

    async fn is_there(&self) -> Result<bool> {
        Ok(origin::trouble(self.port, &self.link).await?.is_none())
    }

    async fn guard(&self) -> Error {
        watch::guard(self.port, self.replicate, &self.link).await
    }
}
