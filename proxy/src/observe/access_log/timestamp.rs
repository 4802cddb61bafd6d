//! Times in RFC 3339 format, in UTC with milliseconds. The part down to the second is cached per thread: on a busy
//! worker thousands of lines share it.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

/// `2026-11-21T07:20:37`.
type UpToSecond = [u8; 19];

thread_local! {
    static LAST: Cell<(i64, UpToSecond)> = const { Cell::new((0, *b"1970-01-01T00:00:00")) };
}

/// Writes `2026-11-21T07:20:37.042Z`.
pub(super) fn write(out: &mut Vec<u8>, time: SystemTime) {
    let (seconds, millis) = since_1970(time);
    let (last, mut text) = LAST.get();
    if seconds != last {
        text = up_to_second(seconds);
        LAST.set((seconds, text));
    }
    out.extend_from_slice(&text);
    let [a, b, c] = [millis / 100, millis / 10 % 10, millis % 10].map(|digit| b'0' + digit as u8);
    out.extend_from_slice(&[b'.', a, b, c, b'Z']);
}

/// The same, as a string.
pub fn text(time: SystemTime) -> String {
    let mut out = Vec::with_capacity(24);
    write(&mut out, time);
    String::from_utf8_lossy(&out).into_owned()
}

fn since_1970(time: SystemTime) -> (i64, u32) {
    let split = |d: Duration| (i64::try_from(d.as_secs()).unwrap_or(i64::MAX), d.subsec_millis());
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => split(after),
        // A clock that was never set: rounded down to the second, which is precise enough.
        Err(before) => (-split(before.duration()).0 - 1, 0),
    }
}

fn up_to_second(seconds: i64) -> UpToSecond {
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400);
    let mut text = *b"0000-00-00T00:00:00";
    let mut put = |at: usize, digits: usize, mut value: i64| {
        for place in text[at..at + digits].iter_mut().rev() {
            *place = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year.clamp(0, 9999));
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    text
}

/// Converts days since 1970 to year, month and day (Howard Hinnant's `civil_from_days`): years begin in March, so
/// that a leap day is the last day of a year, and an era is 400 years.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(millis: u64) -> String {
        let mut out = Vec::new();
        write(&mut out, SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_match_the_command_date() {
        assert_eq!(show(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(show(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(show(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(show(1_234_567_890_120), "2009-02-13T23:31:30.120Z");
        assert_eq!(show(1_234_567_890_121), "2009-02-13T23:31:30.121Z");
        assert_eq!(show(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        let mut out = Vec::new();
        write(&mut out, SystemTime::UNIX_EPOCH - Duration::from_millis(500));
        assert_eq!(out, b"1969-12-31T23:59:59.000Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = civil(-1);
        assert_eq!(last, (1969, 12, 31));
        for day in 0..200_000 {
            let (y, m, d) = civil(day);
            let next_day = (y, m, d) == (last.0, last.1, last.2 + 1);
            let next_month =
                d == 1 && last.2 >= 28 && ((y, m) == (last.0, last.1 + 1) || (y, m, last.1) == (last.0 + 1, 1, 12));
            assert!(next_day || next_month, "{last:?} to {:?}", (y, m, d));
            last = (y, m, d);
        }
    }
}
