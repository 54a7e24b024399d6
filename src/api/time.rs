//! Times as people write them: RFC 3339 in UTC, `2026-11-24T04:23:15Z`.
//!
//! Only what the API needs: reading a time with any offset, writing one in UTC, to the second or the millisecond. The
//! calendar is the proleptic Gregorian one, without leap seconds, as in every Unix clock.

/// Milliseconds since 1970 as `2026-11-24T04:23:15Z`; with three decimals when it is not a whole second.
pub fn utc_text(time_ms: u64) -> String {
    let (days, seconds) = (time_ms / 86_400_000, time_ms / 1000 % 86_400);
    let (year, month, day) = date_of(days);
    let fraction = match time_ms % 1000 {
        0 => String::new(),
        millis => format!(".{millis:03}"),
    };
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The date that is so many days after 1 January 1970.
fn date_of(days: u64) -> (u64, u64, u64) {
    // Days since 1 March of the year 0, in cycles of 400 years, as every calendar does it.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
    (year + cycle * 400, month, day_of_month)
}

/// So many days after 1 January 1970 is this date; none before that day.
fn days_to(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month < 3 { (year.checked_sub(1)?, month + 9) } else { (year, month - 3) };
    let (cycle, year) = (year / 400, year % 400);
    let day = year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1;
    (cycle * 146_097 + day).checked_sub(719_468)
}

/// Reads an RFC 3339 time, such as `2026-11-24T04:23:15Z` or `2026-11-24T06:23:15.5+02:00`, as milliseconds since 1970.
pub fn parse_utc(text: &str) -> Option<u64> {
    let text = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        digits.iter().try_fold(0u64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
    };
    let is = |at: usize, wanted: &[u8]| text.get(at).is_some_and(|byte| wanted.contains(byte));
    let marks = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !marks || hour > 23 || minute > 59 || second > 59 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let days = days_to(year, month, day)?;
    // A day that the month does not have is another date.
    if date_of(days) != (year, month, day) {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if is(at, b".") {
        let end = at + 1 + text.get(at + 1..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=9).contains(&(end - at - 1)) {
            return None;
        }
        // What is finer than a millisecond is cut off.
        millis = (0..3).try_fold(0, |sum, n| {
            let digit = if at + 1 + n < end { number(at + 1 + n, at + 2 + n)? } else { 0 };
            Some(sum * 10 + digit)
        })?;
        at = end;
    }
    let local_ms = (days * 86_400 + hour * 3600 + minute * 60 + second) * 1000 + millis;
    match text.get(at)? {
        b'Z' | b'z' if text.len() == at + 1 => Some(local_ms),
        sign @ (b'+' | b'-') if text.len() == at + 6 && is(at + 3, b":") => {
            let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset_ms = (hours * 60 + minutes) * 60_000;
            if *sign == b'+' { local_ms.checked_sub(offset_ms) } else { local_ms.checked_add(offset_ms) }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_come_back() {
        for (time_ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_764_000_000_000, "2025-11-24T16:00:00Z"),
            (4_102_444_800_007, "2100-01-01T00:00:00.007Z"),
        ] {
            assert_eq!(utc_text(time_ms), text);
            assert_eq!(parse_utc(text), Some(time_ms));
        }
    }

    #[test]
    fn offsets_and_fractions_are_understood_and_nonsense_is_not() {
        assert_eq!(parse_utc("2025-11-24T18:00:00+02:00"), Some(1_764_000_000_000));
        assert_eq!(parse_utc("2025-11-24t15:30:00.25-00:30"), Some(1_764_000_000_250));
        assert_eq!(parse_utc("2025-11-24 16:00:00.1239z"), Some(1_764_000_000_123));
        for bad in [
            "",
            "soon",
            "2025-11-24",
            "2025-11-24T16:00:00",
            "2025-11-24T16:00:00.Z",
            "2025-11-24T16:00:00ZZ",
            "2025-02-29T00:00:00Z",
            "2025-13-01T00:00:00Z",
            "2025-00-01T00:00:00Z",
            "2025-11-31T00:00:00Z",
            "2025-11-24T24:00:00Z",
            "2025-11-24T16:60:00Z",
            "2025-11-24T16:00:00+2:00",
            "2025-11-24T16:00:00+24:00",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "٢٠٢٥-11-24T16:00:00Z",
        ] {
            assert_eq!(parse_utc(bad), None, "{bad}");
        }
    }
}
