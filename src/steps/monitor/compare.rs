//! Before and after: what probes showed in the baseline and what they show now, as a table. Pure.

use super::probe::Probe;
use super::stats::{Series, Stats};
use crate::table::{Column, Table};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is told of a number.
const FIGURES: [(&str, f64); 3] = [("median", 0.5), ("p95", 0.95), ("p99", 0.99)];

/// The table of a monitor's probes, in the plan's order: of each the value, if that is a number, and the time that an
/// answer took. A query that must simply be true has no value to speak of.
pub(super) fn table(
    probes: &[Probe],
    baseline: &BTreeMap<String, Stats>,
    now: &BTreeMap<String, Stats>,
) -> Table {
    let mut out = Table::new([
        Column::new("probe"),
        Column::new("figure"),
        Column::new("baseline"),
        Column::new("now"),
        Column::change("change"),
    ]);
    for probe in probes {
        let before = baseline.get(&probe.name);
        let Some(stats) = now.get(&probe.name) else { continue };
        if !probe.is_plain_sql() && !probe.is_timed() {
            rows(&mut out, &probe.name, before.map(|before| &before.values), &stats.values);
        }
        rows(&mut out, &format!("{}, ms", probe.name), before.map(|before| &before.times), &stats.times);
    }
    out
}

/// Three figures and the number of samples that they are of.
fn rows(out: &mut Table, name: &str, before: Option<&Series>, now: &Series) {
    if now.is_empty() {
        return;
    }
    for (figure, q) in FIGURES {
        let (usual, found) = (before.and_then(|series| series.percentile(q)), now.percentile(q));
        let change = usual.zip(found).and_then(|(usual, found)| change(usual, found));
        out.row([json!(name), json!(figure), json!(usual), json!(found), json!(change)]);
    }
    let before = before.map(Series::len).filter(|count| *count > 0);
    out.row([json!(name), json!("samples"), json!(before), json!(now.len()), Value::Null]);
}

/// The change in per cent, to a tenth; none from zero to anything else.
fn change(usual: f64, found: f64) -> Option<f64> {
    if (found - usual).abs() <= f64::EPSILON * usual.abs() {
        return Some(0.0);
    }
    let change = (found - usual) * 100.0 / usual.abs();
    change.is_finite().then(|| (change * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(values: &[f64], times: &[f64]) -> Stats {
        let mut out = Stats::default();
        values.iter().for_each(|value| out.values.add(*value));
        times.iter().for_each(|time| out.times.add(*time));
        out
    }

    fn probes(values: Value) -> Vec<Probe> {
        serde_json::from_value(values).unwrap()
    }

    #[test]
    fn changes_are_of_the_baseline() {
        assert_eq!(change(100.0, 152.34), Some(52.3));
        assert_eq!(change(100.0, 50.0), Some(-50.0));
        assert_eq!(change(-10.0, -5.0), Some(50.0), "more is more");
        assert_eq!(change(0.0, 0.0), Some(0.0));
        assert_eq!(change(0.0, 3.0), None);
    }

    #[test]
    fn a_probe_has_a_row_for_each_figure_of_its_value_and_of_its_time() {
        let sql = json!({ "on": "green", "query": "select 1" });
        let probes = probes(json!([
            { "name": "depth", "sql": sql, "max": 3 },
            { "name": "healthy", "sql": sql },
            { "name": "new", "http": { "url": "http://x" } },
            { "name": "never answered", "http": { "url": "http://x" } },
        ]));
        let before = BTreeMap::from([
            ("depth".to_owned(), stats(&[1.0, 2.0], &[10.0, 10.0])),
            ("healthy".to_owned(), stats(&[1.0], &[4.0])),
        ]);
        let now = BTreeMap::from([
            ("depth".to_owned(), stats(&[3.0], &[20.0])),
            ("healthy".to_owned(), stats(&[1.0], &[4.0])),
            ("new".to_owned(), stats(&[], &[7.0])),
            ("never answered".to_owned(), Stats::default()),
        ]);
        let rows = table(&probes, &before, &now).rows;
        let shown: Vec<String> = rows.iter().map(|row| Value::from(row.clone()).to_string()).collect();
        assert_eq!(
            shown,
            [
                r#"["depth","median",1.0,3.0,200.0]"#,
                r#"["depth","p95",2.0,3.0,50.0]"#,
                r#"["depth","p99",2.0,3.0,50.0]"#,
                r#"["depth","samples",2,1,null]"#,
                r#"["depth, ms","median",10.0,20.0,100.0]"#,
                r#"["depth, ms","p95",10.0,20.0,100.0]"#,
                r#"["depth, ms","p99",10.0,20.0,100.0]"#,
                r#"["depth, ms","samples",2,1,null]"#,
                r#"["healthy, ms","median",4.0,4.0,0.0]"#,
                r#"["healthy, ms","p95",4.0,4.0,0.0]"#,
                r#"["healthy, ms","p99",4.0,4.0,0.0]"#,
                r#"["healthy, ms","samples",1,1,null]"#,
                r#"["new, ms","median",null,7.0,null]"#,
                r#"["new, ms","p95",null,7.0,null]"#,
                r#"["new, ms","p99",null,7.0,null]"#,
                r#"["new, ms","samples",null,1,null]"#,
            ]
        );
    }
}
