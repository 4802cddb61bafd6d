//! Sets of IP address blocks, merged into sorted ranges and searched by bisection.

use std::net::IpAddr;

/// A set of addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    // The first and the last address of each range; ranges are sorted and disjoint.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Blocks {
    /// Adds a block (`10.0.0.0/8`) or a single address. Call `finish` after the last one.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), String> {
        let (ip, prefix) = parse(text)?;
        match ip {
            IpAddr::V4(ip) => {
                let (first, host) = (ip.to_bits(), u32::MAX.checked_shr(prefix).unwrap_or(0));
                self.v4.push((first, first | host));
            }
            IpAddr::V6(ip) => {
                let (first, host) = (ip.to_bits(), u128::MAX.checked_shr(prefix).unwrap_or(0));
                self.v6.push((first, first | host));
            }
        }
        Ok(())
    }

    /// Prepares the set for lookups.
    pub(crate) fn finish(&mut self) {
        merge(&mut self.v4, |last| last.checked_add(1));
        merge(&mut self.v6, |last| last.checked_add(1));
    }

    /// Whether an address is in the set. An IPv4 address is never in an IPv6 block, not even in `::/0`. The unspecified
    /// address represents an unknown client, and is in no set.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        if ip.is_unspecified() {
            return false;
        }
        match ip.to_canonical() {
            IpAddr::V4(ip) => find(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => find(&self.v6, ip.to_bits()),
        }
    }
}

fn merge<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, next: impl Fn(T) -> Option<T>) {
    ranges.sort_unstable();
    ranges.dedup_by(|later, kept| {
        let touches = next(kept.1).is_none_or(|after| later.0 <= after);
        if touches {
            kept.1 = kept.1.max(later.1);
        }
        touches
    });
}

fn find<T: Copy + Ord>(ranges: &[(T, T)], ip: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= ip);
    after > 0 && ip <= ranges[after - 1].1
}

/// Parses an address and its prefix length. IPv4-mapped IPv6 blocks become IPv4.
fn parse(text: &str) -> Result<(IpAddr, u32), String> {
    let example = "write `10.0.0.0/8`, `2001:db8::/32` or a single address";
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let ip: IpAddr = address.parse().map_err(|_| format!("`{text}` is not a block of addresses; {example}"))?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => bits,
        Some(digits) => {
            let number = digits.parse::<u32>().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
            number.filter(|n| *n <= bits).ok_or_else(|| {
                format!("`/{digits}` is not a prefix length for {address}, which has {bits} bits; {example}")
            })?
        }
    };
    let (value, host) = match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), u128::from(u32::MAX.checked_shr(prefix).unwrap_or(0))),
        IpAddr::V6(ip) => (ip.to_bits(), u128::MAX.checked_shr(prefix).unwrap_or(0)),
    };
    if value & host != 0 {
        let first = match ip {
            IpAddr::V4(_) => IpAddr::V4(((value & !host) as u32).into()),
            IpAddr::V6(_) => IpAddr::V6((value & !host).into()),
        };
        return Err(format!("`{text}` has bits set after its prefix; write `{first}/{prefix}` or `{address}`"));
    }
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) if ip.is_ipv6() && prefix >= 96 => Ok((v4, prefix - 96)),
        _ => Ok((ip, prefix)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(texts: &[&str]) -> Blocks {
        let mut blocks = Blocks::default();
        texts.iter().for_each(|t| blocks.add(t).unwrap());
        blocks.finish();
        blocks
    }

    #[test]
    fn addresses_are_found() {
        let table = [
            (&["10.0.0.0/8"][..], "10.255.255.255", true),
            (&["10.0.0.0/8"], "11.0.0.0", false),
            (&["10.0.0.0/8"], "9.255.255.255", false),
            (&["10.0.0.0/8"], "::ffff:10.1.2.3", true),
            (&["::ffff:10.0.0.0/104"], "10.1.2.3", true),
            (&["::ffff:10.0.0.0/104"], "11.0.0.1", false),
            (&["::ffff:10.1.2.3"], "10.1.2.3", true),
            (&["::ffff:10.1.2.3"], "10.1.2.4", false),
            (&["192.0.2.7"], "192.0.2.7", true),
            (&["192.0.2.7"], "192.0.2.8", false),
            (&["0.0.0.0/0"], "255.255.255.255", true),
            (&["0.0.0.0/0"], "2001:db8::1", false),
            (&["::/0"], "192.0.2.1", false),
            (&["::/0"], "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            (&["2001:db8::/32"], "2001:db8:ffff::1", true),
            (&["2001:db8::/32"], "2001:db9::", false),
            (&["2001:db8::1"], "2001:db8::1", true),
            (&["10.0.0.0/24", "10.0.2.0/24"], "10.0.1.0", false),
            (&["10.0.2.0/24", "10.0.0.0/24"], "10.0.2.9", true),
            (&[], "10.0.0.1", false),
        ];
        for (texts, ip, expected) in table {
            assert_eq!(blocks(texts).contains(ip.parse().unwrap()), expected, "{texts:?} {ip}");
        }
    }

    #[test]
    fn neighbours_and_nested_blocks_become_one() {
        let merged = blocks(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25", "255.255.255.255", "255.255.255.254"]);
        assert_eq!(merged.v4, [(0x0a00_0000, 0x0a00_01ff), (0xffff_fffe, 0xffff_ffff)]);
        assert_eq!(blocks(&["::/0", "::1"]).v6, [(0, u128::MAX)]);
    }

    #[test]
    fn errors_suggest_a_correction() {
        let example = "write `10.0.0.0/8`, `2001:db8::/32` or a single address";
        let table = [
            ("10.0.0/8", format!("`10.0.0/8` is not a block of addresses; {example}")),
            ("example.com", format!("`example.com` is not a block of addresses; {example}")),
            ("10.0.0.0/33", format!("`/33` is not a prefix length for 10.0.0.0, which has 32 bits; {example}")),
            ("10.0.0.0/+8", format!("`/+8` is not a prefix length for 10.0.0.0, which has 32 bits; {example}")),
            ("::/129", format!("`/129` is not a prefix length for ::, which has 128 bits; {example}")),
            ("10.1.2.3/8", "`10.1.2.3/8` has bits set after its prefix; write `10.0.0.0/8` or `10.1.2.3`".into()),
            ("2001:db8::1/32", {
                "`2001:db8::1/32` has bits set after its prefix; write `2001:db8::/32` or `2001:db8::1`".into()
            }),
        ];
        for (text, expected) in table {
            assert_eq!(Blocks::default().add(text), Err(expected));
        }
    }
}
