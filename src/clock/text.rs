//! Moments as people write them.

use chrono::{DateTime, Days, Local, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};

use super::{Hlc, Millis};

/// The moment that `text` names, at `now`: `2026-11-22T14:00`, also with seconds, with a blank in place of the T, or the day alone;
/// `14:00`, the last time that it was so late; `2h-ago`, in seconds, minutes, hours, days or weeks; `now`. In this
/// machine's time zone, or in UTC with a `Z` behind it.
#[must_use]
pub fn moment(text: &str, now: Millis) -> Option<Millis> {
    if text == "now" {
        return Some(now);
    }
    if let Some(span) = text.strip_suffix("-ago") {
        return ago(span, now);
    }
    if let Some(utc) = text.strip_suffix('Z') {
        return written(utc, now, &Utc);
    }
    written(text, now, &Local)
}

fn ago(span: &str, now: Millis) -> Option<Millis> {
    let digits = span.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = span.split_at(digits);
    let seconds = match unit {
        "s" | "sec" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    let span = number.parse::<u64>().ok()?.checked_mul(seconds)?.checked_mul(1_000)?;
    Some(Millis(now.0.saturating_sub(span)))
}

fn written<Z: TimeZone>(text: &str, now: Millis, zone: &Z) -> Option<Millis> {
    let time = |text| ["%H:%M:%S%.f", "%H:%M"].iter().find_map(|form| NaiveTime::parse_from_str(text, form).ok());
    if let Some(time) = time(text) {
        let now = DateTime::from_timestamp_millis(i64::try_from(now.0).ok()?)?.with_timezone(zone);
        let today = in_zone(now.date_naive().and_time(time), zone)?;
        let millis = u64::try_from(now.timestamp_millis()).ok()?;
        if today.0 <= millis {
            return Some(today);
        }
        return in_zone(now.date_naive().checked_sub_days(Days::new(1))?.and_time(time), zone);
    }
    let (day, rest) = text.split_at_checked(10)?;
    let day = NaiveDate::parse_from_str(day, "%Y-%m-%d").ok()?;
    if rest.is_empty() {
        return in_zone(day.and_time(NaiveTime::MIN), zone);
    }
    in_zone(day.and_time(time(rest.strip_prefix(['T', ' ', '_'])?)?), zone)
}

/// The first of two moments that a clock that is put back shows; of one that is skipped, the one an hour later.
fn in_zone<Z: TimeZone>(moment: NaiveDateTime, zone: &Z) -> Option<Millis> {
    let found = match zone.from_local_datetime(&moment) {
        LocalResult::Single(found) | LocalResult::Ambiguous(found, _) => found,
        LocalResult::None => zone.from_local_datetime(&(moment + chrono::TimeDelta::hours(1))).earliest()?,
    };
    u64::try_from(found.timestamp_millis()).ok().map(Millis)
}

/// A stamp as the start of a file's name, in UTC: such names sort as stamps do.
#[must_use]
pub fn name(stamp: Hlc) -> String {
    let at = i64::try_from(stamp.millis().0).ok().and_then(DateTime::from_timestamp_millis);
    let at = at.map_or_else(|| stamp.millis().0.to_string(), |at| at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string());
    match stamp.0 & 0xffff {
        0 => at,
        counter => format!("{at}.{counter:05}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22T14:30:05.123Z.
    const NOW: Millis = Millis(1_795_357_805_123);

    #[test]
    fn moments_are_read_as_people_write_them() {
        let at = |text: &str| moment(text, NOW).map(|at| name(Hlc::at(at)));
        let is = |text: &str, expected: &str| assert_eq!(at(text).as_deref(), Some(expected), "{text}");
        is("now", "2026-11-22T14:30:05.123Z");
        is("2h-ago", "2026-11-22T12:30:05.123Z");
        is("90s-ago", "2026-11-22T14:28:35.123Z");
        is("1w-ago", "2026-11-15T14:30:05.123Z");
        is("14:00Z", "2026-11-22T14:00:00.000Z");
        is("15:00Z", "2026-11-21T15:00:00.000Z");
        is("2026-11-20T08:15Z", "2026-11-20T08:15:00.000Z");
        is("2026-11-20 08:15:09Z", "2026-11-20T08:15:09.000Z");
        is("2026-11-20T08:15:09.250Z", "2026-11-20T08:15:09.250Z");
        is("2026-11-20Z", "2026-11-20T00:00:00.000Z");
        for wrong in
            ["", "2h", "h-ago", "2y-ago", "25:00", "2026-13-01", "2026-11-20X08:15", "abcd", "99999999999999999w-ago"]
        {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn without_a_zone_it_is_the_machines_own() {
        let here =
            Local.from_local_datetime(&NaiveDate::from_ymd_opt(2026, 11, 20).unwrap().and_hms_opt(8, 15, 0).unwrap());
        let expected = u64::try_from(here.earliest().unwrap().timestamp_millis()).unwrap();
        assert_eq!(moment("2026-11-20T08:15", NOW), Some(Millis(expected)));
    }

    #[test]
    fn names_sort_as_stamps_do() {
        let stamp = |counter| Hlc(Hlc::at(NOW).0 + counter);
        let names = [0, 1, 2, 10, 100, 65_535].map(|counter| format!("{}-author", name(stamp(counter))));
        assert!(names.is_sorted());
        assert!(names[5] < format!("{}-author", name(stamp(65_536))));
    }
}
