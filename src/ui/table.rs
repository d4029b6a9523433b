//! Tables that steps give, for a terminal, as Markdown and as HTML. Columns in which nothing stands are left out.

use crate::event::{Record, StepId};
use crate::table::{Column, KEY, Numbers, Table};
use console::{Alignment, measure_text_width, pad_str};
use indicatif::HumanCount;
use serde_json::Value;

/// The table that a record brings: of a step that is done or undone, or of one that is about to fail.
#[must_use]
pub fn of_record(record: &Record) -> Option<(&StepId, Table)> {
    match record {
        Record::StepDone { step, summary } | Record::UndoDone { step, summary } => {
            Some((step, Table::of(summary)?))
        }
        Record::StepFact { step, key, value } if key == KEY => Some((step, Table::read(value)?)),
        _ => None,
    }
}

/// A table in words: headings, whether the column is of numbers, and cells.
struct Words {
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Words {
    fn of(table: &Table) -> Self {
        let cell = |row: &Vec<Value>, at: usize| row.get(at).cloned().unwrap_or(Value::Null);
        let told: Vec<(usize, &Column)> = table
            .columns
            .iter()
            .enumerate()
            .filter(|(at, _)| table.rows.iter().any(|row| !cell(row, *at).is_null()))
            .collect();
        let columns = told
            .iter()
            .map(|(at, column)| {
                let text = table.rows.iter().any(|row| cell(row, *at).is_string());
                (column.name.clone(), !text)
            })
            .collect();
        let rows = table
            .rows
            .iter()
            .map(|row| told.iter().map(|(at, column)| words(&cell(row, *at), column.numbers)).collect())
            .collect();
        Words { columns, rows }
    }

    /// The same, with a first cell that repeats the one above it left blank.
    fn grouped(mut self) -> Self {
        let mut above = String::new();
        for first in self.rows.iter_mut().filter_map(|row| row.first_mut()) {
            if *first == above {
                first.clear();
            } else {
                above.clone_from(first);
            }
        }
        self
    }
}

/// The table as lines for a terminal.
#[must_use]
pub fn lines(table: &Table) -> Vec<String> {
    let words = Words::of(table).grouped();
    let headings: Vec<String> = words.columns.iter().map(|(name, _)| name.clone()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&headings).chain(&words.rows).collect();
    let width =
        |at: usize| all.iter().filter_map(|row| row.get(at)).map(|cell| measure_text_width(cell)).max();
    let widths: Vec<usize> = (0..headings.len()).map(|at| width(at).unwrap_or(0)).collect();
    all.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .zip(&words.columns)
                .map(|((cell, width), (_, number))| {
                    let side = if *number { Alignment::Right } else { Alignment::Left };
                    pad_str(cell, *width, side, None).into_owned()
                })
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

/// The table as Markdown; `escape` makes text mean nothing but itself.
#[must_use]
pub fn markdown(table: &Table, escape: impl Fn(&str) -> String) -> String {
    let words = Words::of(table);
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut out = row(words.columns.iter().map(|(name, _)| escape(name)).collect());
    out +=
        &row(words.columns.iter().map(|(_, number)| if *number { "---:" } else { "---" }.into()).collect());
    for cells in words.rows {
        out += &row(cells.iter().map(|cell| escape(cell)).collect());
    }
    out
}

/// The table as HTML; `escape` makes text mean nothing but itself.
#[must_use]
pub fn html(table: &Table, escape: impl Fn(&str) -> String) -> String {
    let words = Words::of(table).grouped();
    let cells = |row: &[String], tag: &str| -> String {
        let cell = |(text, (_, number)): (&String, &(String, bool))| {
            let class = if *number { " class=\"number\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escape(text))
        };
        format!("<tr>{}</tr>", row.iter().zip(&words.columns).map(cell).collect::<String>())
    };
    let headings: Vec<String> = words.columns.iter().map(|(name, _)| name.clone()).collect();
    let body: String = words.rows.iter().map(|row| cells(row, "td")).collect();
    format!("<table><thead>{}</thead><tbody>{body}</tbody></table>", cells(&headings, "th"))
}

fn words(cell: &Value, numbers: Numbers) -> String {
    match (cell, numbers) {
        (Value::Null, _) => String::new(),
        (Value::Number(number), Numbers::Amounts) => {
            number.as_f64().map_or_else(|| number.to_string(), amount)
        }
        (Value::Number(number), Numbers::PercentChange) => {
            number.as_f64().map_or_else(|| number.to_string(), change)
        }
        (Value::String(text), _) => text.clone(),
        (other, _) => other.to_string(),
    }
}

/// An amount with as many digits as people read: `1,235`, `18.4`, `0.123`.
fn amount(number: f64) -> String {
    let size = number.abs();
    let digits = match size {
        _ if number.fract() == 0.0 => 0,
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ => 3,
    };
    let sign = if number < 0.0 { "-" } else { "" };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within")]
    if digits == 0 && size < 1e15 {
        return format!("{sign}{}", HumanCount(size.round() as u64));
    }
    format!("{number:.digits$}")
}

/// A change in per cent, with its sign: `+52 %`, `-3.1 %`, `0 %`.
fn change(percent: f64) -> String {
    let sign = match percent {
        p if p > 0.0 => "+",
        p if p < 0.0 => "-",
        _ => "",
    };
    let size = percent.abs();
    if size >= 100.0 || size.fract() == 0.0 {
        return format!("{sign}{} %", amount(size.round()));
    }
    format!("{sign}{size:.1} %")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Table {
        let mut out = Table::new([
            Column::new("probe"),
            Column::new("figure"),
            Column::new("empty"),
            Column::new("now"),
            Column::change("change"),
        ]);
        out.row([json!("login <b>|"), json!("median"), json!(null), json!(18.44), json!(52.3)]);
        out.row([json!("login <b>|"), json!("p99"), json!(null), json!(1234.5), json!(-3.1)]);
        out.row([json!("depth"), json!("p99"), json!(null), json!(0.1234), json!(null)]);
        out
    }

    #[test]
    fn lines_are_aligned_and_say_nothing_twice() {
        assert_eq!(
            lines(&table()),
            [
                "probe       figure    now   change",
                "login <b>|  median   18.4  +52.3 %",
                "            p99     1,235   -3.1 %",
                "depth       p99     0.123",
            ]
        );
    }

    #[test]
    fn markup_has_all_cells_and_nothing_of_theirs_becomes_markup() {
        let bars = |text: &str| text.replace('|', "\\|");
        let text = markdown(&table(), bars);
        assert!(
            text.starts_with("| probe | figure | now | change |\n| --- | --- | ---: | ---: |\n"),
            "{text}"
        );
        assert!(text.contains("| login <b>\\| | p99 | 1,235 | -3.1 % |\n"), "{text}");
        let page = html(&table(), |text| text.replace('<', "&lt;"));
        assert!(page.contains("<td>login &lt;b>|</td>"), "{page}");
        assert!(page.contains("<td class=\"number\">+52.3 %</td>"), "{page}");
    }

    #[test]
    fn numbers_have_the_digits_that_people_read() {
        for (number, says) in [
            (0.0, "0"),
            (3.0, "3"),
            (0.5, "0.500"),
            (9.876, "9.88"),
            (98.76, "98.8"),
            (987.6, "988"),
            (-12_345.6, "-12,346"),
            (1_000_000.0, "1,000,000"),
        ] {
            assert_eq!(amount(number), says);
        }
        assert_eq!(
            [change(0.0), change(12.0), change(-250.4), change(-0.25)],
            ["0 %", "+12 %", "-250 %", "-0.2 %"]
        );
    }
}
