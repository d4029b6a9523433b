//! The copy's plan, written to the target before anything is created there.

use crate::dump::Program;
use crate::options::{Copy, Owners};
use crate::source::Source;
use crate::state::State;
use crate::{
    catalog, created, definitions, dependents, fingerprint, preflight, rights, schema, source, state, target,
};
use handover_core::error::Result;
use handover_port::Port;
use handover_postgres::{Session, TableName, ours, quote_ident};

/// Dumps the schema and writes the copy's plan to the target.
pub async fn write(
    port: &Port,
    copy: &Copy,
    program: &Program,
    source: &Source,
    green: &mut Session,
) -> Result<State> {
    let selection = copy.selection();
    let options = dump_options(copy, source.session()).await?;
    let major = source.session().major().await?;
    let dumped = program
        .dump(port.databases.url(&copy.from)?, (&copy.from, major), Some(&source.held().exported), &options)
        .await?;
    let (settings, mut before, mut after) = schema::split(dumped);
    // Triggers that capture, backfill or a cutover made belong to blue.
    let sql = format!(
        "select t.oid from pg_trigger t join pg_proc p on p.oid = t.tgfoid where not ({})",
        catalog::not_our_trigger()
    );
    let rows = source.session().query(&sql, &[]).await?;
    let triggers: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    schema::without(&mut after, |e| e.kind == "TRIGGER" && triggers.contains(&e.oid));
    // So does what a replication publishes.
    schema::without(&mut after, |e| e.kind.starts_with("PUBLICATION") && e.name.starts_with("handover_"));
    // An extension that is there already belongs to whoever made it; so does its comment.
    let rows = green.query("select extname::text from pg_extension", &[]).await?;
    let extensions: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    schema::without(&mut before, |e| e.kind == "EXTENSION" && extensions.contains(&e.name));
    schema::public_stays(source.session(), green, &mut before).await?;
    let left = dependents::left_out(copy, source.session()).await?;
    schema::leave_out(&mut before, &mut after, &left);
    preflight::roles(copy, green, &before.iter().chain(&after).collect::<Vec<_>>()).await?;
    schema::rehearse(port, copy, &settings, &before.iter().chain(&after).collect::<Vec<_>>()).await?;
    let tables = source.tables(copy).await?;
    let sequences = source.sequences(&selection).await?;
    let mut inventory = source::inventory(source.session(), &selection).await?;
    inventory.retain(|fact| !left.covers(fact));
    let definitions = definitions::read(source.session(), &selection).await?;
    let shown = target::shown(port, copy).await?;
    let tx = green.transaction().await?;
    let state = State {
        shown,
        existing: created::existing(&tx).await?,
        snapshot: source.snapshot.clone(),
        held: source.held().clone(),
        tables,
        sequences,
        settings,
        before,
        after: source.places(after).await?,
        analyze: source.analyzed(&selection).await?,
        inventory,
        definitions,
        left_out: left.words(),
        writes: source.writes.clone(),
        operations: source.operations.clone(),
        server_started: source.server_started.clone(),
    };
    rights::remember(&tx, port).await?;
    fingerprint::keep(port, source.session(), &tx).await?;
    tx.save_checkpoint(port.run, &port.step, state::STATE, &state).await?;
    tx.commit().await?;
    Ok(state)
}

/// Options that make pg_dump leave out what the plan leaves out.
async fn dump_options(copy: &Copy, session: &Session) -> Result<Vec<String>> {
    let selection = copy.selection();
    let mut options: Vec<String> = ours::schemas().iter().map(|s| format!("--exclude-schema={s}")).collect();
    let sql = format!("select n.nspname::text from pg_namespace n where {}", catalog::USER_SCHEMAS);
    for row in session.query(&sql, &[]).await? {
        let schema: String = row.get(0);
        if !selection.schema(&schema) {
            options.push(format!("--exclude-schema={}", quote_ident(&schema)));
        }
    }
    for row in session.query(&catalog::relations("'r', 'p', 'v', 'm', 'f'"), &[]).await? {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if selection.schema(&name.schema) && !selection.relation(&name) {
            options.push(format!("--exclude-table={}", name.sql()));
        }
    }
    if copy.owners == Owners::Skip {
        options.extend(["--no-owner".to_owned(), "--no-privileges".to_owned()]);
    }
    if !copy.publications {
        options.push("--no-publications".into());
    }
    // The old name of --no-large-objects, known to every version.
    options.push("--no-blobs".into());
    Ok(options)
}
