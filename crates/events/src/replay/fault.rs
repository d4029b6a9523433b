//! What is at fault when the server refuses an event's statement.
//!
//! Only an event that is itself at fault may be set aside, for setting aside is for good unless somebody looks. The
//! list is short and closed: what is not on it says something about the session, the server, the role, the schema or
//! the mapping, and would hit the next event too.
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>)

use handover_core::error::Error;
use handover_postgres::error::is_about_values;

/// Whether an error is about the event, so that the plan's `on_error` applies. Anything else halts, or passes.
pub fn is_the_events(error: &Error) -> bool {
    error.sqlstate().is_some_and(is_about_values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use handover_core::error::Class;

    /// Every class of the appendix, each with whether it speaks of values.
    const APPENDIX: &[(&str, bool)] = &[
        ("00", false), // successful completion
        ("01", false), // warning
        ("02", false), // no data
        ("03", false), // statement not yet complete
        ("08", false), // connection exception
        ("09", false), // triggered action exception
        ("0A", false), // feature not supported
        ("0B", false), // invalid transaction initiation
        ("0F", false), // locator exception
        ("0L", false), // invalid grantor
        ("0P", false), // invalid role specification
        ("0Z", false), // diagnostics exception
        ("10", false), // XQuery error
        ("20", false), // case not found
        ("21", true),  // cardinality violation
        ("22", true),  // data exception
        ("23", true),  // integrity constraint violation
        ("24", false), // invalid cursor state
        ("25", false), // invalid transaction state
        ("26", false), // invalid statement name
        ("27", false), // triggered data change violation
        ("28", false), // invalid authorization
        ("2B", false), // dependent privileges exist
        ("2D", false), // invalid transaction termination
        ("2F", false), // SQL routine exception
        ("34", false), // invalid cursor name
        ("38", false), // external routine exception
        ("39", false), // external routine invocation exception
        ("3B", false), // savepoint exception
        ("3D", false), // invalid catalog name
        ("3F", false), // invalid schema name
        ("40", false), // transaction rollback: deadlocks, serialization
        ("42", false), // syntax, access, undefined objects: the mapping or the schema
        ("44", true),  // WITH CHECK OPTION violation
        ("53", false), // insufficient resources
        ("54", false), // program limit exceeded
        ("55", false), // object not in prerequisite state: locks among it
        ("57", false), // operator intervention: cancels, timeouts, shutdowns
        ("58", false), // system error
        ("72", false), // snapshot failure
        ("F0", false), // configuration file error
        ("HV", false), // foreign data wrapper error
        ("XX", false), // internal error
    ];

    #[test]
    fn every_class_is_either_about_values_or_not() {
        for (class, expected) in APPENDIX {
            for rest in ["000", "001", "501", "P01", "P02", "P03", "P04", "P05"] {
                assert_eq!(is_about_values(&format!("{class}{rest}")), *expected, "{class}{rest}");
            }
        }
        // PL/pgSQL's own class mixes both.
        for (code, expected) in
            [("P0000", false), ("P0001", true), ("P0002", true), ("P0003", true), ("P0004", true)]
        {
            assert_eq!(is_about_values(code), expected, "{code}");
        }
    }

    #[test]
    fn what_others_do_to_us_is_never_about_the_event() {
        for code in [
            "57014", "57P01", "57P02", "57P03", "57P05", "55P03", "55006", "42501", "28000", "28P01",
            "53100", "53200", "53300", "54000", "40001", "40P01", "08006", "XX000", "XX002", "42P01",
            "42703", "25P03", "25P04", "25006",
        ] {
            assert!(!is_about_values(code), "{code}");
        }
        // Without a code nobody knows.
        assert!(!is_the_events(&Error::new(Class::Data, "a value that the driver refuses")));
        assert!(is_the_events(&Error::new(Class::Data, "x").with_sqlstate("23505")));
    }
}
