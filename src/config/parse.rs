//! From text to values: sizes, durations, names, addresses and URLs. Pure functions; an error is a sentence without
//! the name of the setting, which the caller adds.

use std::net::SocketAddr;

/// The longest name of a member or a site; a DNS label holds as many.
const NAME_CHARS: usize = 63;

/// A number of bytes: `65536`, `64KiB`, `64MiB`, `1GiB`, `64KB` (decimal), `100B`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(format!("{unit:?} is not a unit of size; write for example 65536, 64KiB, 16MiB or 1GiB")),
    };
    number.checked_mul(factor).ok_or_else(|| "the size is too large".to_owned())
}

/// A duration in milliseconds: `250`, `250ms`, `5s`, `2m`, `1h`.
pub fn millis(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{unit:?} is not a unit of time; write for example 250ms, 5s, 2m or 1h")),
    };
    number.checked_mul(factor).ok_or_else(|| "the time is too long".to_owned())
}

/// A whole number.
pub fn count(text: &str) -> Result<u64, String> {
    match number_and_unit(text)? {
        (number, "") => Ok(number),
        (_, unit) => Err(format!("a plain whole number is wanted, without {unit:?}")),
    }
}

/// `true` or `false`.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false is wanted".to_owned()),
    }
}

fn number_and_unit(text: &str) -> Result<(u64, &str), String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("a whole number is wanted".to_owned());
    }
    let number = number.parse().map_err(|_| "the number is too large".to_owned())?;
    Ok((number, unit.trim_start()))
}

/// The name of a member or of a site.
pub fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > NAME_CHARS {
        return Err(format!("a name has 1 to {NAME_CHARS} characters, this one has {}", text.chars().count()));
    }
    match text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        Some(c) => Err(format!("{c:?} cannot stand in a name; only a-z, 0-9 and - can")),
        None => Ok(text.to_owned()),
    }
}

/// An address to listen on: a numeric IP address and a port.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| "an IP address and a port are wanted, as 127.0.0.1:7400 or [::1]:7400".to_owned())
}

/// The URL of a member, `http://host:port`. A slash at its end is dropped; anything behind it is refused.
pub fn url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let Some(rest) = text.strip_prefix("http://") else {
        return Err(if text.starts_with("https://") {
            "https is not supported yet; http://host:port is".to_owned()
        } else {
            format!("a URL is wanted, as http://{}", if text.is_empty() { "10.0.0.1:7401" } else { text })
        });
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err("http://host:port and nothing more is wanted".to_owned());
    }
    let (host, port) = split_authority(authority);
    let host_is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let bracketed = host.starts_with('[');
    let host_is_good = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !bracketed && !host.is_empty() && host.chars().all(host_is_plain),
    };
    if !host_is_good {
        return Err(format!("{host:?} is not a host"));
    }
    match port {
        Some(port) if !matches!(port.parse::<u16>(), Ok(1..)) => Err(format!("{port:?} is not a port (1 to 65535)")),
        _ => Ok(format!("http://{authority}")),
    }
}

fn split_authority(authority: &str) -> (&str, Option<&str>) {
    // The colons of an IPv6 address stand inside its brackets.
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    match authority[host_end..].find(':') {
        Some(colon) => (&authority[..host_end + colon], Some(&authority[host_end + colon + 1..])),
        None => (authority, None),
    }
}
