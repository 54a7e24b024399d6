//! From text to values: sizes, durations, names, addresses and URLs. Pure functions; an error is a sentence without
//! the name of the setting, which the caller adds.

use std::net::SocketAddr;

use super::{DEFAULT_PEER_PORT, Discovery};

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

/// A URL to which events are posted: an `http://` one, with any path and query.
pub fn webhook(text: &str) -> Result<String, String> {
    let text = text.trim();
    let rest = text.strip_prefix("http://").unwrap_or_default();
    let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_at);
    // Says what is wrong with anything but the path; a path is checked by its characters.
    url(if rest.is_empty() { text } else { &text[..text.len() - path.len()] })?;
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err("a path of visible ASCII characters without # is wanted".to_owned());
    }
    Ok(format!("http://{authority}{}{path}", if path.starts_with('?') { "/" } else { "" }))
}

/// The key of a label of Kubernetes: a name, perhaps with a domain and `/` before it.
pub fn kubernetes_label(text: &str) -> Result<String, String> {
    let (domain, name) = text.split_once('/').map_or((None, text), |(domain, name)| (Some(domain), name));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_name = |part: &str, longest| {
        (1..=longest).contains(&part.len()) && part.chars().all(plain) && ends_are_alphanumeric(part)
    };
    if is_name(name, 63) && domain.is_none_or(|domain| is_name(domain, 253)) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not the key of a label, as lifeboat-role or example.net/role"))
}

/// The name of a pod.
pub fn kubernetes_pod(text: &str) -> Result<String, String> {
    let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.');
    if (1..=253).contains(&text.len()) && text.chars().all(plain) && ends_are_alphanumeric(text) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not the name of a pod"))
}

fn ends_are_alphanumeric(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// The URL of the API server of Kubernetes, the only one that may begin with `https://`.
pub fn kubernetes_api(text: &str) -> Result<String, String> {
    match text.trim().strip_prefix("https://") {
        Some(rest) => Ok(url(&format!("http://{rest}"))?.replacen("http", "https", 1)),
        None => url(text),
    }
}

/// Where other members may be: `host:port`, or `dns:name` or `dns:name:port` for every address that a name has.
pub fn discovery(text: &str) -> Result<Discovery, String> {
    let text = text.trim();
    let (rest, is_dns) = match text.strip_prefix("dns:") {
        Some(rest) => (rest, true),
        None => (text.strip_prefix("http://").unwrap_or(text), false),
    };
    let checked = url(&format!("http://{rest}"));
    let checked = checked.map_err(|why| format!("host:port or dns:name[:port] is wanted; {why}"))?;
    let authority = checked.strip_prefix("http://").unwrap_or(&checked);
    let (host, port) = split_authority(authority);
    let port =
        port.map_or(Ok(DEFAULT_PEER_PORT), |port| port.parse().map_err(|_| format!("{port:?} is not a port")))?;
    if is_dns && host.starts_with('[') {
        return Err("dns: takes a name, not an address".to_owned());
    }
    Ok(if is_dns {
        Discovery::Dns { name: host.to_owned(), port }
    } else {
        Discovery::Address { host: host.to_owned(), port }
    })
}

fn split_authority(authority: &str) -> (&str, Option<&str>) {
    // The colons of an IPv6 address stand inside its brackets.
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    match authority[host_end..].find(':') {
        Some(colon) => (&authority[..host_end + colon], Some(&authority[host_end + colon + 1..])),
        None => (authority, None),
    }
}
