//! Patterns for device names: `*` is any run of characters, `?` is any one; no escapes.

/// Whether any of `patterns` is a pattern for the whole of `name`.
pub fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
}

/// Walks both texts once. Of several stars only the last can need to take more, so that a
/// mismatch goes back to that one alone.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut last_star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last_star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((star, taken)) = last_star else { return false };
                last_star = Some((star, taken + 1));
                (p, n) = (star + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_names_only() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth0", "veth0", false),
            ("veth*", "veth", true),
            ("veth*", "veth3f2a", true),
            ("veth*", "eth0", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("e?h*1", "eth101", true),
            ("eth?", "eth", false),
            ("a*b*c", "axbxbxc", true),
            ("a*b*c", "axbxbx", false),
            ("**a", "ba", true),
        ] {
            assert_eq!(matches_any(&[pattern.to_owned()], name), expected, "{pattern} on {name}");
        }
        assert!(!matches_any(&[], "eth0"));
    }
}
