//! The example plans with their migrations, inside the program, so that the demo runs from anywhere. They are the
//! same files that people read in the repository.

use crate::error::{Error, Result};
use std::path::Path;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        /// Path and content.
        const FILES: &[(&str, &str)] = &[$(($path, include_str!(concat!("../../", $path)))),*];
    };
}

files! {
    "plans/handover.schema.json",
    "plans/oauth-1x.yaml",
    "plans/oauth-2x.yaml",
    "migrations/oauth-1x/0001_audience.up.sql",
    "migrations/oauth-1x/0001_audience.down.sql",
    "migrations/oauth-1x/0002_consent_claims.up.sql",
    "migrations/oauth-1x/0002_consent_claims.down.sql",
    "migrations/oauth-2x/20220101000001000000_flow.up.sql",
    "migrations/oauth-2x/20220101000001000000_flow.down.sql",
    "migrations/oauth-2x/20220101000002000000_oauth_token.up.sql",
    "migrations/oauth-2x/20220101000002000000_oauth_token.down.sql",
    "migrations/oauth-2x/20220101000003000000_indexes.postgres.autocommit.up.sql",
    "migrations/oauth-2x/20220101000003000000_indexes.postgres.autocommit.down.sql",
    "migrations/oauth-2x-override/20220101000001000000_flow.up.sql",
}

/// The plan that goes first.
pub const FIRST: &str = "plans/oauth-1x.yaml";
/// The plan that goes second.
pub const SECOND: &str = "plans/oauth-2x.yaml";

/// Writes everything below `folder`, and the folder of the service's own files beside the plans.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(folder: &Path) -> Result<()> {
    let cannot = |e: std::io::Error| {
        Error::external(format!("cannot write in {}: {e}", folder.display()))
            .hint("set TMPDIR to a folder that can be written")
    };
    for (path, content) in FILES {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(cannot)?;
        }
        std::fs::write(path, content).map_err(cannot)?;
    }
    std::fs::create_dir_all(folder.join("service")).map_err(cannot)?;
    std::fs::write(folder.join(CONFIG), "database = blue\nrelease = 1.10\n").map_err(cannot)
}

/// The service's configuration: what it would read if it were started again.
pub const CONFIG: &str = "service/oauth.conf";
/// While this file is there, the purge job does nothing.
pub const PURGE_HOLD: &str = "service/purge.hold";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_example_file_is_in_the_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = ["plans", "migrations/oauth-1x", "migrations/oauth-2x", "migrations/oauth-2x-override"];
        let mut there = BTreeSet::new();
        for folder in folders {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                there.insert(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        let inside: BTreeSet<String> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(there, inside, "files in the repository (left) and in the program (right)");
    }
}
