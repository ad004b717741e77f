//! The Corefile: what CoreDNS does with the cluster zone, and whether it does more than answer
//! from the cluster's objects.
//!
//! Takes the text, gives the settings that answers depend on, and leave to deny or the reason
//! why there is none. It knows the few directives with which a name that the objects do not
//! have does not exist; with any other, CoreDNS may know better.

/// What the Corefile says of the zone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corefile {
    /// The time to live of answers, in seconds.
    pub ttl: u32,
    /// Whether a name that the objects do not have does not exist; if not, the reason.
    pub denial: Result<(), String>,
}

/// The default of CoreDNS (plugin/kubernetes, `defaultTTL`).
pub const DEFAULT_TTL: u32 = 5;
/// The largest that CoreDNS takes.
const MOST_TTL: u32 = 3600;
/// The plugins that neither know names of their own nor change answers.
const HARMLESS: [&str; 11] = [
    "errors",
    "log",
    "health",
    "ready",
    "prometheus",
    "cache",
    "loop",
    "reload",
    "loadbalance",
    "forward",
    "metadata",
];

/// A directive with its arguments, and what stands in its braces.
struct Directive<'a> {
    words: Vec<&'a str>,
    block: Vec<Directive<'a>>,
}

/// What the Corefile `text` says of `zone`, which is in lower case and has no dot at its end.
pub fn read(text: &str, zone: &str) -> Corefile {
    let nothing = |reason: String| Corefile { ttl: DEFAULT_TTL, denial: Err(reason) };
    let tokens = match tokens(text) {
        Ok(tokens) => tokens,
        Err(reason) => return nothing(reason),
    };
    let mut rest = tokens.as_slice();
    let servers = match directives(&mut rest, 0) {
        Ok(servers) => servers,
        Err(reason) => return nothing(reason),
    };
    match server_of(&servers, zone) {
        Ok(server) => of_server(server, zone),
        Err(reason) => nothing(reason),
    }
}

/// The words of each line, of which a brace is one.
fn tokens(text: &str) -> Result<Vec<Vec<&str>>, String> {
    if let Some(line) = text.lines().position(|line| line.contains(['"', '`'])) {
        return Err(format!("line {} of the Corefile has a quoted word", line + 1));
    }
    let lines = text.lines().map(|line| -> Vec<_> {
        line.split_whitespace().take_while(|word| !word.starts_with('#')).collect()
    });
    Ok(lines.filter(|words| !words.is_empty()).collect())
}

/// The directives up to the brace that closes `depth` blocks.
fn directives<'a>(lines: &mut &[Vec<&'a str>], depth: usize) -> Result<Vec<Directive<'a>>, String> {
    let mut found = Vec::new();
    while let Some((line, rest)) = lines.split_first() {
        *lines = rest;
        match line.as_slice() {
            ["}"] if depth > 0 => return Ok(found),
            [words @ .., "{"] if !words.is_empty() && !words.iter().any(|word| is_brace(word)) => {
                let block = directives(lines, depth + 1)?;
                found.push(Directive { words: words.to_vec(), block });
            }
            words if words.iter().any(|word| is_brace(word)) => {
                return Err(format!(
                    "the Corefile has braces that are not understood: {}",
                    words.join(" ")
                ));
            }
            words => found.push(Directive { words: words.to_vec(), block: Vec::new() }),
        }
    }
    if depth == 0 { Ok(found) } else { Err("the Corefile ends inside a block".to_owned()) }
}

fn is_brace(word: &str) -> bool {
    word == "{" || word == "}"
}

/// The server block that answers for `zone`: the one with the longest name that it lies in.
fn server_of<'a, 'b>(
    servers: &'b [Directive<'a>],
    zone: &str,
) -> Result<&'b Directive<'a>, String> {
    let mut best: Option<(usize, &Directive<'_>)> = None;
    for server in servers {
        for key in server.words.iter().flat_map(|word| word.split(',')) {
            if key.is_empty() {
                continue;
            }
            if key.starts_with('(') || key == "import" || key.contains(['$', '%', '/']) {
                return Err(format!("the Corefile has {key:?}, which is not followed"));
            }
            let name = key.rsplit_once(':').map_or(key, |(name, _)| name).to_ascii_lowercase();
            let name = name.trim_end_matches('.');
            if is_within(name, zone) && name != zone {
                return Err(format!("the Corefile has a server for {name}, inside {zone}"));
            }
            if !is_within(zone, name) {
                continue;
            }
            match best {
                Some((length, _)) if length == name.len() => {
                    return Err(format!("the Corefile has two servers for {key}"));
                }
                Some((length, _)) if length > name.len() => {}
                _ => best = Some((name.len(), server)),
            }
        }
    }
    best.map(|(_, server)| server).ok_or_else(|| format!("the Corefile has no server for {zone}"))
}

/// Whether `name` is `zone` or lies in it; the empty zone is the root.
fn is_within(name: &str, zone: &str) -> bool {
    let rest = name.strip_suffix(zone);
    rest.is_some_and(|rest| zone.is_empty() || rest.is_empty() || rest.ends_with('.'))
}

fn of_server(server: &Directive<'_>, zone: &str) -> Corefile {
    let mut corefile = Corefile { ttl: DEFAULT_TTL, denial: Ok(()) };
    let refuse = |denial: &mut Result<(), String>, reason: String| {
        if denial.is_ok() {
            *denial = Err(reason);
        }
    };
    let mut zones = 0;
    for directive in &server.block {
        let name = directive.words[0];
        if name == "kubernetes" {
            zones += 1;
            if let Err(reason) = of_kubernetes(directive, zone, &mut corefile) {
                refuse(&mut corefile.denial, reason);
            }
        } else if !HARMLESS.contains(&name) {
            refuse(
                &mut corefile.denial,
                format!(
                    "the Corefile has `{name}`, which may know names of its own or change answers"
                ),
            );
        }
    }
    if zones != 1 {
        let reason = format!("the server for {zone} has `kubernetes` {zones} times, not once");
        refuse(&mut corefile.denial, reason);
    }
    corefile
}

/// Reads the directive `kubernetes`.
fn of_kubernetes(
    directive: &Directive<'_>,
    zone: &str,
    corefile: &mut Corefile,
) -> Result<(), String> {
    let zones: Vec<_> = directive.words[1..]
        .iter()
        .map(|zone| zone.trim_end_matches('.').to_ascii_lowercase())
        .collect();
    let own: Vec<_> =
        zones.iter().filter(|name| is_within(zone, name) || is_within(name, zone)).collect();
    let mut result = match own.as_slice() {
        // Without zones, those of the server block.
        [] if zones.is_empty() => Ok(()),
        [own] if **own == *zone => Ok(()),
        _ => Err(format!("`kubernetes` in the Corefile is not for {zone} alone")),
    };
    for option in &directive.block {
        let found = match option.words.as_slice() {
            ["ttl", seconds] => match seconds.parse() {
                Ok(seconds) if seconds <= MOST_TTL => {
                    corefile.ttl = seconds;
                    Ok(())
                }
                _ => Err(format!("the Corefile has `ttl {seconds}`")),
            },
            // The kernel answers no names of pods.
            ["pods", ..] => Ok(()),
            ["fallthrough", zones @ ..] => {
                let reaches = |name: &&str| {
                    let name = name.trim_end_matches('.').to_ascii_lowercase();
                    is_within(zone, &name) || is_within(&name, zone)
                };
                if zones.is_empty() || zones.iter().any(reaches) {
                    Err(format!("`fallthrough` in the Corefile asks others for names of {zone}"))
                } else {
                    Ok(())
                }
            }
            // How the API server is reached.
            [
                "endpoint"
                | "tls"
                | "kubeconfig"
                | "apiserver_qps"
                | "apiserver_burst"
                | "apiserver_max_inflight"
                | "startup_timeout",
                ..,
            ] => Ok(()),
            words => Err(format!("the Corefile has `{}` in `kubernetes`", words.join(" "))),
        };
        result = result.and(found);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBEADM: &str = "
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
";

    fn denial(text: &str) -> String {
        read(text, "cluster.local").denial.err().unwrap_or_else(|| "yes".to_owned())
    }

    #[test]
    fn kubeadms_corefile_gives_leave_to_deny() {
        let corefile = Corefile { ttl: 30, denial: Ok(()) };
        assert_eq!(read(KUBEADM, "cluster.local"), corefile);
    }

    #[test]
    fn every_directive_of_the_server_counts() {
        for name in HARMLESS {
            let text = KUBEADM.replace("    loop\n", &format!("    {name}\n    # {name}\n"));
            assert_eq!(denial(&text), "yes", "{name}");
        }
        let others = [
            "rewrite name a b",
            "template IN A",
            "hosts",
            "autopath @kubernetes",
            "file db",
            "k8s_external example.org",
            "acl",
            "view",
            "bind 10.0.0.1",
            "import custom/*.override",
            "nodecache",
            "etcd",
            "route53",
            "dns64",
            "minimal",
            "multicluster clusterset.local",
        ];
        for line in others {
            let text = KUBEADM.replace("    loop\n", &format!("    {line}\n"));
            let name = line.split(' ').next().unwrap();
            assert!(denial(&text).contains(&format!("`{name}`")), "{line}: {}", denial(&text));
            assert_eq!(read(&text, "cluster.local").ttl, 30, "{line}");
        }
        let block = KUBEADM.replace("    loop\n", "    hosts {\n 10.0.0.1 a.b\n fallthrough\n }\n");
        assert!(denial(&block).contains("`hosts`"));
    }

    #[test]
    fn every_option_of_kubernetes_counts() {
        let with = |option: &str| KUBEADM.replace("       ttl 30", &format!("       {option}"));
        let options = [
            ("endpoint https://10.0.0.1:6443", "yes"),
            ("tls a b c", "yes"),
            ("kubeconfig /etc/kubeconfig", "yes"),
            ("startup_timeout 5s", "yes"),
            ("fallthrough 10.in-addr.arpa", "yes"),
            ("fallthrough", "`fallthrough`"),
            ("fallthrough cluster.local", "`fallthrough`"),
            ("fallthrough .", "`fallthrough`"),
            ("fallthrough svc.cluster.local", "`fallthrough`"),
            ("namespaces a b", "`namespaces a b`"),
            ("labels a=b", "`labels a=b`"),
            ("namespace_labels a=b", "`namespace_labels"),
            ("noendpoints", "`noendpoints`"),
            ("endpoint_pod_names", "`endpoint_pod_names`"),
            ("ignore empty_service", "`ignore empty_service`"),
            ("transfer to *", "`transfer to *`"),
            ("ttl 3601", "`ttl 3601`"),
            ("ttl soon", "`ttl soon`"),
        ];
        for (option, expected) in options {
            let found = denial(&with(option));
            assert!(found.contains(expected), "{option}: {found}");
            assert_eq!(read(&with(option), "cluster.local").ttl, DEFAULT_TTL, "{option}");
        }
        assert_eq!(read(&with("ttl 0"), "cluster.local").ttl, 0);
        for pods in ["pods disabled", "# none", "pods verified"] {
            assert_eq!(denial(&KUBEADM.replace("pods insecure", pods)), "yes", "{pods}");
        }
    }

    #[test]
    fn zones_decide_which_server_answers() {
        let with = |server: &str| format!("{KUBEADM}\n{server} {{\n    forward . 10.0.0.1\n}}\n");
        assert_eq!(denial(&with("example.org:53")), "yes");
        assert!(denial(&with("local:53")).contains("`kubernetes` 0 times"), "the longer name");
        assert_eq!(denial(&with("uster.local:53")), "yes", "no zone that this one lies in");
        assert!(denial(&with("svc.cluster.local")).contains("inside cluster.local"));
        assert!(denial(&with("a.org, B.Cluster.Local.:53")).contains("inside cluster.local"));
        assert!(denial(&with("cluster.local:53")).contains("`kubernetes` 0 times"));
        assert!(denial(&with(".:1053")).contains("two servers"));
        assert!(denial(&with("(snippet)")).contains("snippet"));
        assert!(denial(&with("{$DOMAIN}")).contains("$DOMAIN"));
        assert!(denial(&format!("{KUBEADM}\nimport custom/*.server\n")).contains("import"));
        assert!(denial("example.org {\n forward . 10.0.0.1\n}\n").contains("no server for"));
        assert_eq!(denial(&KUBEADM.replace(".:53", "cluster.local:53 in-addr.arpa")), "yes");
        let bare = KUBEADM
            .replace(".:53", "cluster.local")
            .replace(" cluster.local in-addr.arpa ip6.arpa {", " {");
        assert_eq!(denial(&bare), "yes");
        assert!(
            denial(&KUBEADM.replace("cluster.local in-addr", "other.local in-addr"))
                .contains("is not for")
        );
        assert!(
            denial(
                &KUBEADM
                    .replace("cluster.local in-addr", "cluster.local svc.cluster.local in-addr")
            )
            .contains("is not for")
        );
    }

    #[test]
    fn what_cannot_be_parsed_gives_no_leave() {
        for text in ["", ".:53 {\n errors\n", ".:53 { errors }\n", "}\n", ".:53 {\n log \"a\"\n}\n"]
        {
            assert_ne!(denial(text), "yes", "{text}");
        }
    }
}
