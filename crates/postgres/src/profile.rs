//! The settings of our sessions: one list, two profiles, and no third.
//!
//! Whatever `ALTER ROLE … SET`, `ALTER DATABASE … SET` or a server's configuration says, a session of ours means
//! the same by the same words. So every setting on which a result could depend is given as an option when the
//! connection starts: that is stronger than any default of a role or database, is what RESET returns to, and
//! leaves no moment in which a default counts. (<https://www.postgresql.org/docs/current/config-setting.html>)
//!
//! - *catalog* is for SQL of ours. Names mean the server's own objects; `pg_temp` is named, and comes last, because
//!   it would be searched first for tables and types if it were not named. Ours are written `handover.…`.
//! - *operator* is for SQL out of a plan, and for what we build around it. Names are looked up in the plan's
//!   `search_path`, which is `public` unless it says otherwise, and never in a schema that happens to be called like
//!   the role (`"$user"`). How local times are read (`TimeZone`, and the order of day and month) and where new
//!   objects are stored stays the database's own choice, as the plan's author may rely on it. Temporary tables of
//!   the session come first, as everywhere; nobody but the session can make one there.
//!
//! A limit that a step sets for itself later (`lock_timeout` and the like) is that step's business.

use super::ident::quote_ident;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

/// A setting of ours that is given when a connection starts. Poolers refuse or drop it, as PgBouncer does with
/// `options` (<https://www.pgbouncer.org/config.html#ignore_startup_parameters>), so its absence gives them away.
pub const DIRECT: &str = "handover.direct";

/// The path of everything that is ours: routines as well as sessions.
pub const PINNED_PATH: &str = "pg_catalog, pg_temp";

/// How a routine of ours writes values as text, whatever the session that it runs in says.
pub const ROUTINE_FORMAT: &str = "set datestyle = 'ISO' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex'";

/// What both profiles say, and every server that we know understands.
const COMMON: &[(&str, &str)] = &[
    (DIRECT, "on"),
    // Rows that a policy hides are an error, and not rows that are missing.
    ("row_security", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("client_min_messages", "notice"),
    ("exit_on_error", "off"),
    ("synchronize_seqscans", "off"),
    // How values are written as text and read back.
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("xmlbinary", "base64"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("array_nulls", "on"),
    // What SQL means.
    ("standard_conforming_strings", "on"),
    ("backslash_quote", "safe_encoding"),
    ("transform_null_equals", "off"),
    ("quote_all_identifiers", "off"),
    ("check_function_bodies", "on"),
    // More than nought makes scans of GIN indexes leave out rows.
    ("gin_fuzzy_search_limit", "0"),
    ("plpgsql.extra_errors", "none"),
    ("plpgsql.extra_warnings", "none"),
];

/// What only the catalog profile says.
const CATALOG: &[(&str, &str)] = &[
    ("search_path", PINNED_PATH),
    ("timezone", "UTC"),
    ("datestyle", "ISO, YMD"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("default_tablespace", ""),
    ("temp_tablespaces", ""),
    ("default_table_access_method", "heap"),
    // A question to the catalogs is planned as dear and answered soon: compiling it takes longer than the answer.
    ("jit", "off"),
];

/// What only the operator profile says. Without an order of day and month, `datestyle` keeps the server's own.
const OPERATOR: &[(&str, &str)] = &[("datestyle", "ISO")];

/// What some servers do not know, with the major version that brought it. An unknown parameter would be refused
/// when the connection starts, so these are set by the session's first statement.
const NEWER: &[(u32, &str, &str)] = &[
    (14, "idle_session_timeout", "0"),
    (15, "stats_fetch_consistency", "cache"),
    (17, "transaction_timeout", "0"),
    (17, "restrict_nonsystem_relation_kind", ""),
];

/// The schemas in which a plan's SQL finds names that stand without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SearchPath(#[schemars(length(min = 1))] pub Vec<String>);

impl Default for SearchPath {
    fn default() -> Self {
        SearchPath(vec!["public".into()])
    }
}

impl SearchPath {
    /// As the value of `search_path`.
    #[must_use]
    pub fn sql(&self) -> String {
        self.0.iter().map(|schema| quote_ident(schema)).collect::<Vec<_>>().join(", ")
    }

    /// For a routine of ours that holds SQL of the plan's and runs in other people's sessions, whose temporary
    /// schema is theirs: the server's own names come first, and temporary ones last.
    #[must_use]
    pub fn sql_of_routine(&self) -> String {
        let named = |schema: &&String| !matches!(schema.as_str(), "pg_catalog" | "pg_temp");
        let own: String =
            self.0.iter().filter(named).map(|schema| format!("{}, ", quote_ident(schema))).collect();
        format!("pg_catalog, {own}pg_temp")
    }
}

/// Whose SQL a session executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// Ours.
    Catalog,
    /// The plan's, or ours with some of the plan's in it.
    Operator(SearchPath),
}

impl Profile {
    /// The `options` of a connection's start, after those that its URL has. `major` is the server's version where it
    /// is known, which it is for the programs that we start.
    ///
    /// Of the URL's own options two count: a `role`, and `synchronous_commit=remote_apply`, which is more than we ask
    /// for.
    #[must_use]
    pub fn options(&self, of_url: &str, read_only: bool, major: Option<u32>) -> String {
        // What stands later wins, and `role` of the URL stands after ours.
        let mut out = option("role", "none");
        if !of_url.trim().is_empty() {
            out.push(' ');
            out.push_str(of_url.trim());
        }
        let mut add = |name: &str, value: &str| {
            out.push(' ');
            out.push_str(&option(name, value));
        };
        if !asks_for(of_url, "synchronous_commit", "remote_apply") {
            add("synchronous_commit", "on");
        }
        add("default_transaction_read_only", if read_only { "on" } else { "off" });
        for (name, value) in COMMON {
            add(name, value);
        }
        match self {
            Profile::Catalog => CATALOG.iter().for_each(|(name, value)| add(name, value)),
            Profile::Operator(path) => {
                OPERATOR.iter().for_each(|(name, value)| add(name, value));
                add("search_path", &path.sql());
            }
        }
        for (since, name, value) in NEWER {
            if major.is_some_and(|major| major >= *since) {
                add(name, value);
            }
        }
        out
    }
}

/// What a session turned out to be.
#[derive(Debug)]
pub struct Start {
    /// Whether our options arrived.
    pub direct: bool,
    /// Which triggers fire in it: `origin`, unless somebody made another word the role's default.
    pub replication_role: String,
}

/// Sets what could not be given at the start, and looks at what cannot be set by everybody.
pub async fn begin(client: &Client) -> Result<Start, tokio_postgres::Error> {
    let names: Vec<&str> = NEWER.iter().map(|(_, name, _)| *name).collect();
    let values: Vec<&str> = NEWER.iter().map(|(_, _, value)| *value).collect();
    let row = client
        .query_one(
            "select pg_catalog.current_setting($1, true) operator(pg_catalog.=) 'on',
                    pg_catalog.current_setting('session_replication_role'),
                    (select pg_catalog.count(pg_catalog.set_config(n, v, false))
                     from rows from (pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[])) as s(n, v)
                     where pg_catalog.current_setting(n, true) is not null)",
            &[&DIRECT, &names, &values],
        )
        .await?;
    let replication_role: String = row.get(1);
    if replication_role != "origin" {
        // Only who was granted the parameter may; the caller refuses a session that stays as it is.
        let set = client.batch_execute("set session_replication_role = origin").await;
        if set.is_ok() {
            return Ok(Start {
                direct: row.get::<_, Option<bool>>(0) == Some(true),
                replication_role: "origin".into(),
            });
        }
    }
    Ok(Start { direct: row.get::<_, Option<bool>>(0) == Some(true), replication_role })
}

/// `-c name=value` as the server takes it apart: at blanks, unless a backslash stands before them.
fn option(name: &str, value: &str) -> String {
    let mut out = format!("-c {name}=");
    for c in value.chars() {
        if c.is_ascii_whitespace() || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Whether a URL's options set a parameter to a value, in the end: what stands later wins.
fn asks_for(options: &str, name: &str, value: &str) -> bool {
    let mut values = options.split_whitespace().filter_map(|word| {
        let (n, v) = word.trim_start_matches("--").trim_start_matches("-c").split_once('=')?;
        n.replace('-', "_").eq_ignore_ascii_case(name).then_some(v)
    });
    values.next_back() == Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_escaped_and_the_url_may_ask_for_more() {
        let path = SearchPath(vec!["a b".into(), "c\\d\"".into()]);
        let options = Profile::Operator(path).options("", true, None);
        assert!(options.contains(r#"-c search_path="a\ b",\ "c\\d"""#), "{options}");
        assert!(options.contains(r"-c default_transaction_isolation=read\ committed"), "{options}");
        assert!(!options.contains("idle_session_timeout"), "{options}");
        assert!(Profile::Catalog.options("", true, Some(15)).contains("idle_session_timeout=0"));
        for (of_url, ours) in [
            ("-c synchronous_commit=remote_apply", false),
            ("--synchronous-commit=remote_apply", false),
            ("-csynchronous_commit=remote_apply", false),
            ("-c synchronous_commit=off", true),
            ("-c synchronous_commit=remote_apply -c synchronous_commit=off", true),
            ("-c synchronous_commit=off -c synchronous_commit=remote_apply", false),
        ] {
            let options = Profile::Catalog.options(of_url, false, None);
            assert_eq!(options.contains("-c synchronous_commit=on"), ours, "{options}");
        }
        let role = Profile::Catalog.options("-c role=app", false, None);
        assert!(role.find("role=none") < role.find("role=app"), "{role}");
    }

    #[test]
    fn a_routine_finds_the_servers_names_first_and_temporary_ones_last() {
        assert_eq!(SearchPath::default().sql_of_routine(), r#"pg_catalog, "public", pg_temp"#);
        let odd = SearchPath(["pg_temp", "app", "pg_catalog"].map(String::from).to_vec());
        assert_eq!(odd.sql_of_routine(), r#"pg_catalog, "app", pg_temp"#);
    }
}
