//! Whether a moment lies within a plan's window, and if not, when that opens. Pure: the clock is given.

use super::gates::Window;
use crate::error::{Error, Result};
use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

/// Within or without.
#[derive(Debug, Clone, PartialEq)]
pub enum Hours {
    /// Within.
    Open,
    /// Without.
    Closed {
        /// When it opens next.
        opens: Zoned,
    },
}

/// Whether `now` lies within the window's days and times; none where it names none. One that ends before it begins goes on
/// into the next day, and belongs to the day on which it began. Where clocks are put forward over its beginning, it begins
/// when they were.
///
/// # Errors
/// A zone that this host does not know; a time out of range.
pub fn hours(window: &Window, now: Timestamp) -> Result<Option<Hours>> {
    if window.days.is_empty() && window.from.is_none() && window.to.is_none() {
        return Ok(None);
    }
    let zone = zone(window)?;
    let from = window.from.map_or(Time::midnight(), |clock| clock.0);
    let to = window.to.map_or(Time::midnight(), |clock| clock.0);
    let mut day = now.to_zoned(zone.clone()).date().yesterday().map_err(range)?;
    let mut opens: Option<Zoned> = None;
    // A week later the same day comes again.
    for _ in 0..10 {
        let next = day.tomorrow().map_err(range)?;
        if window.days.is_empty() || window.days.iter().any(|wanted| wanted.weekday() == day.weekday()) {
            let begins = day.to_datetime(from).to_zoned(zone.clone()).map_err(range)?;
            let last = if to > from { day } else { next };
            let ends = last.to_datetime(to).to_zoned(zone.clone()).map_err(range)?;
            if begins.timestamp() <= now && now < ends.timestamp() {
                return Ok(Some(Hours::Open));
            }
            if begins.timestamp() > now && begins < ends {
                opens = opens.or(Some(begins));
            }
        }
        day = next;
    }
    let far = || now.to_zoned(zone.clone()).checked_add(10.days()).map_err(range);
    Ok(Some(Hours::Closed { opens: opens.map_or_else(far, Ok)? }))
}

fn range(error: jiff::Error) -> Error {
    Error::internal(format!("a time that cannot be computed with ({error})"))
}

/// The zone.
///
/// # Errors
/// One that this host does not know.
pub fn zone(window: &Window) -> Result<TimeZone> {
    let Some(name) = &window.zone else { return Ok(TimeZone::UTC) };
    TimeZone::get(name).map_err(|_| {
        Error::usage(format!("this host knows no time zone `{name}`"))
            .hint("zones are named like `Europe/Zurich`; a host learns them from its package `tzdata`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(window: &serde_json::Value, now: &str) -> String {
        let window: Window = serde_json::from_value(window.clone()).unwrap();
        match hours(&window, now.parse().unwrap()).unwrap() {
            None => "any time".into(),
            Some(Hours::Open) => "open".into(),
            Some(Hours::Closed { opens }) => opens.strftime("%a %d %H:%M %Q").to_string(),
        }
    }

    #[test]
    fn it_is_open_from_its_beginning_until_before_its_end() {
        let window =
            json!({ "days": ["sat", "sun"], "from": "02:00", "to": "04:30", "zone": "Europe/Zurich" });
        // Friday; one hour before UTC+1's 02:00 on Saturday, and so on.
        for (now, says) in [
            ("2026-11-27T18:00:00Z", "Sat 28 02:00 Europe/Zurich"),
            ("2026-11-28T00:59:59Z", "Sat 28 02:00 Europe/Zurich"),
            ("2026-11-28T01:00:00Z", "open"),
            ("2026-11-28T03:29:59Z", "open"),
            ("2026-11-28T03:30:00Z", "Sun 29 02:00 Europe/Zurich"),
            ("2026-11-29T12:00:00Z", "Sat 05 02:00 Europe/Zurich"),
        ] {
            assert_eq!(at(&window, now), says, "{now}");
        }
    }

    #[test]
    fn one_over_midnight_belongs_to_the_day_on_which_it_began() {
        let window = json!({ "days": ["fri"], "from": "22:00", "to": "03:00", "zone": "UTC" });
        for (now, says) in [
            ("2026-11-27T21:59:00Z", "Fri 27 22:00 UTC"),
            ("2026-11-28T02:59:00Z", "open"),
            ("2026-11-28T22:30:00Z", "Fri 04 22:00 UTC"),
        ] {
            assert_eq!(at(&window, now), says, "{now}");
        }
        assert_eq!(at(&json!({ "days": ["fri"], "zone": "UTC" }), "2026-11-27T23:59:59Z"), "open");
        assert_eq!(at(&json!({ "max_transactions_per_second": 5 }), "2026-11-27T23:59:59Z"), "any time");
    }

    #[test]
    fn clocks_that_are_put_forward_move_its_beginning() {
        // 29 March 2026, 02:00 to 03:00 does not exist in Zurich.
        let window = json!({ "from": "02:15", "to": "04:30", "zone": "Europe/Zurich" });
        assert_eq!(at(&window, "2026-03-29T00:59:59Z"), "Sun 29 03:15 Europe/Zurich");
        assert_eq!(at(&window, "2026-03-29T01:15:00Z"), "open");
        assert_eq!(at(&window, "2026-03-29T02:30:00Z"), "Mon 30 02:15 Europe/Zurich");
        // Wholly within the hour that is left out: not on that day.
        let window = json!({ "from": "02:15", "to": "02:45", "zone": "Europe/Zurich" });
        assert_eq!(at(&window, "2026-03-28T12:00:00Z"), "Sun 29 03:15 Europe/Zurich");
    }

    #[test]
    fn a_zone_that_is_not_known_is_an_error() {
        let window: Window =
            serde_json::from_value(json!({ "days": ["mon"], "zone": "Europe/Zürich" })).unwrap();
        assert!(hours(&window, Timestamp::UNIX_EPOCH).unwrap_err().message().contains("Europe/Zürich"));
    }
}
