//! Python's `datetime.strftime` in the C locale, for `strftime_now` in chat templates.
//!
//! The time is UTC: containers run in UTC, and a prompt must not depend on the server's time zone files.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats `time` (times before 1970 count as 1970). Directives that are not known stay as they are.
pub(crate) fn strftime(format: &str, time: SystemTime) -> String {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let date = Date::of(since_epoch.as_secs());
    let micros = since_epoch.subsec_micros();
    let mut out = String::with_capacity(format.len() + 16);
    expand(&date, micros, format, &mut out);
    out
}

struct Date {
    year: u64,
    /// From 0.
    month: usize,
    /// Of the month, from 1.
    day: u64,
    /// Of the year, from 0.
    day_of_year: u64,
    /// Sunday is 0.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
    epoch_s: u64,
}

impl Date {
    fn of(epoch_s: u64) -> Self {
        let (mut days, second_of_day) = (epoch_s / 86_400, epoch_s % 86_400);
        let weekday = ((days + 4) % 7) as usize;
        // 400 years always have 146 097 days; the rest is at most 400 steps.
        let mut year = 1970 + days / 146_097 * 400;
        days %= 146_097;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let day_of_year = days;
        let mut month = 0;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: days + 1,
            day_of_year,
            weekday,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
            epoch_s,
        }
    }

    fn hour_12(&self) -> u64 {
        (self.hour + 11) % 12 + 1
    }

    fn am_pm(&self) -> &'static str {
        if self.hour < 12 { "AM" } else { "PM" }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: usize) -> u64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// The padding flag after `%`: `-` none, `_` blanks, `0` zeros, otherwise the directive's own.
fn expand(date: &Date, micros: u32, format: &str, out: &mut String) {
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.as_str();
        let flag = directive.chars().next().filter(|flag| matches!(flag, '-' | '_' | '0'));
        if flag.is_some() {
            chars.next();
        }
        match chars.next() {
            Some(name) => {
                if !one(date, micros, flag, name, out) {
                    out.push('%');
                    out.extend(flag);
                    out.push(name);
                }
            }
            None => {
                out.push('%');
                out.extend(flag);
            }
        }
    }
}

/// Writes one directive; false where there is no such directive.
fn one(date: &Date, micros: u32, flag: Option<char>, name: char, out: &mut String) -> bool {
    let monday_based = (date.weekday + 6) % 7;
    let (number, width, blank) = match name {
        'Y' => (date.year, 4, false),
        'C' => (date.year / 100, 2, false),
        'y' => (date.year % 100, 2, false),
        'm' => (date.month as u64 + 1, 2, false),
        'd' => (date.day, 2, false),
        'e' => (date.day, 2, true),
        'j' => (date.day_of_year + 1, 3, false),
        'H' => (date.hour, 2, false),
        'k' => (date.hour, 2, true),
        'I' => (date.hour_12(), 2, false),
        'l' => (date.hour_12(), 2, true),
        'M' => (date.minute, 2, false),
        'S' => (date.second, 2, false),
        'f' => (u64::from(micros), 6, false),
        's' => (date.epoch_s, 1, false),
        'w' => (date.weekday as u64, 1, false),
        'u' => (monday_based as u64 + 1, 1, false),
        'U' => ((date.day_of_year + 7 - date.weekday as u64) / 7, 2, false),
        'W' => ((date.day_of_year + 7 - monday_based as u64) / 7, 2, false),
        _ => return text(date, micros, name, out),
    };
    // Writing to a string cannot fail.
    let _ = match (flag, blank) {
        (Some('-'), _) => write!(out, "{number}"),
        (Some('_'), _) | (None, true) => write!(out, "{number:width$}"),
        _ => write!(out, "{number:0width$}"),
    };
    true
}

fn text(date: &Date, micros: u32, name: char, out: &mut String) -> bool {
    let composed = match name {
        'c' => "%a %b %e %H:%M:%S %Y",
        'D' | 'x' => "%m/%d/%y",
        'F' => "%Y-%m-%d",
        'r' => "%I:%M:%S %p",
        'R' => "%H:%M",
        'T' | 'X' => "%H:%M:%S",
        _ => {
            match name {
                'A' => out.push_str(WEEKDAYS[date.weekday]),
                'a' => out.push_str(&WEEKDAYS[date.weekday][..3]),
                'B' => out.push_str(MONTHS[date.month]),
                'b' | 'h' => out.push_str(&MONTHS[date.month][..3]),
                'p' => out.push_str(date.am_pm()),
                'P' => out.push_str(if date.hour < 12 { "am" } else { "pm" }),
                'n' => out.push('\n'),
                't' => out.push('\t'),
                // A naive datetime has no zone.
                'z' | 'Z' => {}
                '%' => out.push('%'),
                _ => return false,
            }
            return true;
        }
    };
    expand(date, micros, composed, out);
    true
}
