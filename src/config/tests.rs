//! Which source wins, which values are understood, and that every refusal names the setting and its source.

use std::ffi::OsString;
use std::path::PathBuf;

use super::*;

/// What a test gives; `name` and `data_dir` come as flags unless it says otherwise.
#[derive(Default)]
struct Case {
    file: Option<&'static str>,
    env: Vec<(&'static str, &'static str)>,
    flags: Vec<(&'static str, &'static str)>,
    bare: bool,
}

fn flags(flags: &[(&'static str, &'static str)]) -> Case {
    Case { flags: flags.to_vec(), ..Case::default() }
}

fn env(env: &[(&'static str, &'static str)]) -> Case {
    Case { env: env.to_vec(), ..Case::default() }
}

fn file(text: &'static str) -> Case {
    Case { file: Some(text), ..Case::default() }
}

fn run(case: Case) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = case.file.map(|text| {
        let path = dir.path().join("member.toml");
        std::fs::write(&path, text).unwrap();
        path
    });
    let mut given: Vec<(String, String)> = Vec::new();
    if !case.bare {
        given.push(("name".into(), "n1".into()));
        given.push(("data_dir".into(), "/data".into()));
    }
    given.extend(case.flags.iter().map(|(name, value)| (name.to_string(), value.to_string())));
    let env = case.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
    load(&Sources { file, env, flags: given }).map_err(|errors| errors.to_string())
}

/// The configuration is refused, and the message says all of `words`.
#[track_caller]
fn refused(case: Case, words: &[&str]) {
    let message = run(case).map(|loaded| loaded.config).unwrap_err();
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in:\n{message}");
    }
}

#[track_caller]
fn accepted(case: Case) -> Config {
    run(case).unwrap().config
}

#[test]
fn the_defaults_are_those_of_the_table() {
    let config = accepted(Case::default());
    assert_eq!(config, Config::new("n1", "/data"));
    assert_eq!((config.name.as_str(), config.site.as_str(), config.role), ("n1", "default", MemberRole::Voter));
    assert_eq!(config.client_listen.to_string(), "127.0.0.1:7400");
    assert_eq!(config.peer_listen.to_string(), "127.0.0.1:7401");
    assert_eq!((config.heartbeat_ms, config.election_min_ms, config.election_max_ms), (100, 300, 600));
    assert_eq!((config.max_value_bytes, config.request_timeout_ms), (1 << 20, 5000));
    assert_eq!((config.wal_keep_bytes, config.write_queue), (512 << 20, 16384));
    assert_eq!((config.bootstrap, config.join.len(), config.client_url.clone()), (false, 0, None));
    assert_eq!(config.client_url_or("127.0.0.1:9".parse().unwrap()), "http://127.0.0.1:9");
    assert_eq!(config.peer_url_or("[::1]:9".parse().unwrap()), "http://[::1]:9");
}

#[test]
fn the_stronger_source_wins() {
    // Which sources give the site, and which one is in force.
    for given in 0..8u8 {
        let (by_file, by_env, by_flag) = (given & 1 != 0, given & 2 != 0, given & 4 != 0);
        let case = Case {
            file: Some(if by_file { "site = \"file\"" } else { "" }),
            env: if by_env { vec![("LIFEBOAT_SITE", "env")] } else { vec![] },
            flags: if by_flag { vec![("site", "flag")] } else { vec![] },
            bare: false,
        };
        let (value, origin) = match (by_file, by_env, by_flag) {
            (_, _, true) => ("flag", "flag --site"),
            (_, true, _) => ("env", "environment variable LIFEBOAT_SITE"),
            (true, _, _) => ("file", "member.toml"),
            _ => ("default", "default"),
        };
        let loaded = run(case).unwrap();
        assert_eq!(loaded.config.site, value, "sources {given:03b}");
        let site = loaded.effective.iter().find(|effective| effective.name == "site").unwrap();
        assert!(site.origin.to_string().contains(origin), "sources {given:03b}: {}", site.origin);
    }
}

#[test]
fn every_setting_is_understood_from_every_source() {
    // A value other than the default for each, as flag or variable and as a line of a file.
    let values = [
        ("name", "other", "\"other\""),
        ("site", "east", "\"east\""),
        ("role", "mirror", "\"mirror\""),
        ("data_dir", "/elsewhere", "\"/elsewhere\""),
        ("client_listen", "127.0.0.1:0", "\"127.0.0.1:0\""),
        ("peer_listen", "[::1]:7500", "\"[::1]:7500\""),
        ("client_url", "http://a.example:80/", "\"http://a.example:80/\""),
        ("peer_url", "http://[::1]:7401", "\"http://[::1]:7401\""),
        ("bootstrap", "true", "true"),
        ("bootstrap_expect", "3", "3"),
        ("discover", "a:1,dns:b,10.0.0.1", "[\"a:1\", \"dns:b\", \"10.0.0.1\"]"),
        ("join", "http://a:1,http://b:2", "[\"http://a:1\", \"http://b:2\"]"),
        ("seed", "/backup/seed", "\"/backup/seed\""),
        ("heartbeat_ms", "50", "50"),
        ("election_min_ms", "400ms", "\"400ms\""),
        ("election_max_ms", "1s", "\"1s\""),
        ("max_value_bytes", "64KiB", "\"64KiB\""),
        ("request_timeout_ms", "2m", "\"2m\""),
        ("wal_segment_bytes", "1MiB", "\"1MiB\""),
        ("wal_memory_bytes", "1000000", "1000000"),
        ("wal_keep_bytes", "2GiB", "\"2GiB\""),
        ("link_compression", "off", "\"off\""),
        ("link_bandwidth_bytes", "1MiB", "\"1MiB\""),
        ("tail_bytes", "2MiB", "\"2MiB\""),
        ("overlay_bytes", "100KB", "\"100KB\""),
        ("value_cache_bytes", "0", "0"),
        ("table_cache_bytes", "1MB", "\"1MB\""),
        ("write_queue", "7", "7"),
        ("history_keep_ms", "2h", "\"2h\""),
        ("history_keep_revisions", "9", "9"),
        ("compaction_percent", "25", "25"),
        ("verify_bytes_per_second", "1MiB", "\"1MiB\""),
        ("delta_keep_ms", "3h", "\"3h\""),
        ("disk_reserve_bytes", "1MiB", "\"1MiB\""),
        ("disk_quota_bytes", "2GiB", "\"2GiB\""),
        ("max_outcomes", "8", "8"),
        ("max_watchers", "9", "9"),
        ("watch_buffer_bytes", "1MiB", "1048576"),
        ("watch_slow_timeout_ms", "9s", "9000"),
        ("rpo_seconds", "20", "20"),
        ("rto_seconds", "30", "30"),
        ("mirror_wait_ms", "7s", "\"7s\""),
        ("canary_interval_ms", "0", "0"),
        ("webhooks", "http://a:1/hook?x=1,http://b", "[\"http://a:1/hook?x=1\", \"http://b\"]"),
        ("kubernetes_label", "example.net/role", "\"example.net/role\""),
        ("kubernetes_pod", "lifeboat-0", "\"lifeboat-0\""),
        ("kubernetes_api", "https://10.0.0.1:6443", "\"https://10.0.0.1:6443\""),
        ("log", "warn,lifeboat=debug", "\"warn,lifeboat=debug\""),
        ("log_format", "json", "\"json\""),
    ];
    assert_eq!(values.len(), SETTINGS.len(), "a setting is not tested");
    for (name, text, line) in values {
        let setting = Setting::find(name).unwrap();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), format!("{name} = {line}\n")).unwrap();
        let mandatory = || {
            let other = |field: &(String, String)| field.0 != name;
            let mut fields = vec![("name".to_owned(), "n1".to_owned()), ("data_dir".to_owned(), "/data".to_owned())];
            if name == "bootstrap_expect" {
                fields.push(("discover".to_owned(), "dns:a".to_owned()));
            }
            if name == "kubernetes_label" {
                fields.push(("kubernetes_pod".to_owned(), "lifeboat-0".to_owned()));
            }
            fields.into_iter().filter(other).collect::<Vec<_>>()
        };
        let by_flag = {
            let mut flags = mandatory();
            flags.push((name.to_owned(), text.to_owned()));
            load(&Sources { flags, ..Sources::default() }).unwrap().config
        };
        let env = vec![(OsString::from(setting.env()), OsString::from(text))];
        let by_env = load(&Sources { env, flags: mandatory(), ..Sources::default() }).unwrap().config;
        let file = Some(path.path().to_owned());
        let by_file = load(&Sources { file, flags: mandatory(), ..Sources::default() }).unwrap().config;
        assert_ne!(by_flag, Config::new("n1", "/data"), "{name} has no effect");
        assert_eq!(by_flag, by_env, "{name}");
        assert_eq!(by_flag, by_file, "{name}");
    }
}

#[test]
fn what_check_prints_is_a_file_that_says_the_same() {
    let first = run(flags(&[("join", "http://a:1"), ("join", "http://b:2"), ("tail_bytes", "2MiB"), ("log", "warn")]));
    let first = first.unwrap();
    let lines: Vec<String> = first.effective.iter().map(Effective::to_line).collect();
    assert!(lines.contains(&"tail_bytes = \"2MiB\"  # flag --tail-bytes".to_owned()), "{lines:?}");
    assert!(lines.contains(&"# client_url is not set".to_owned()), "{lines:?}");
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), lines.join("\n")).unwrap();
    let sources = Sources { file: Some(path.path().to_owned()), ..Sources::default() };
    assert_eq!(load(&sources).unwrap().config, first.config);
}

#[test]
fn lists_add_up_within_a_source_and_replace_between_them() {
    let case = Case {
        file: Some("join = [\"http://file:1\"]"),
        env: vec![("LIFEBOAT_JOIN", "http://a:1, http://b:2/")],
        ..Case::default()
    };
    assert_eq!(accepted(case).join, ["http://a:1", "http://b:2"]);
    let case = Case {
        env: vec![("LIFEBOAT_JOIN", "http://env:1")],
        flags: vec![("join", "http://a:1,http://b:2"), ("join", "http://c:3")],
        ..Case::default()
    };
    assert_eq!(accepted(case).join, ["http://a:1", "http://b:2", "http://c:3"]);
}

#[test]
fn the_file_may_be_named_by_a_variable_and_is_overruled_by_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let (weak, strong) = (dir.path().join("weak.toml"), dir.path().join("strong.toml"));
    std::fs::write(&weak, "name = \"weak\"\ndata_dir = \"d\"").unwrap();
    std::fs::write(&strong, "name = \"strong\"\ndata_dir = \"d\"").unwrap();
    let env = vec![(OsString::from("LIFEBOAT_CONFIG"), weak.into_os_string())];
    let by_env = load(&Sources { env: env.clone(), ..Sources::default() }).unwrap();
    assert_eq!((by_env.config.name.as_str(), by_env.warnings.len()), ("weak", 0));
    let by_flag = load(&Sources { env, file: Some(strong), ..Sources::default() }).unwrap();
    assert_eq!(by_flag.config.name, "strong");
}

#[test]
fn what_must_be_given_is_asked_for() {
    let missing = ["name: must be given", "--name", "LIFEBOAT_NAME", "data_dir: must be given", "--data-dir"];
    refused(Case { bare: true, ..Case::default() }, &missing);
}

#[test]
fn unknown_fields_are_refused_by_name() {
    refused(
        file("nmae = \"x\"\n[wal]\nsegment = 1"),
        &["nmae: no such setting", "wal: no such setting", "member.toml"],
    );
    refused(flags(&[("nmae", "x")]), &["nmae: no such setting", "flag --nmae"]);
    refused(file("name = \n"), &["member.toml", "line 1"]);
    refused(file("site = \"a\"\nsite = \"b\""), &["member.toml", "duplicate"]);
    let sources = Sources { file: Some(PathBuf::from("/no/such/file.toml")), ..Sources::default() };
    assert!(load(&sources).unwrap_err().to_string().contains("file /no/such/file.toml: No such file"));
}

#[test]
fn unknown_variables_are_warned_about_but_not_those_of_kubernetes() {
    let loaded =
        run(env(&[("LIFEBOAT_NMAE", "x"), ("OTHER", "y"), ("LIFEBOAT_TEST_SEED", "1"), ("LIFEBOAT_SITES", "")]));
    let warnings = loaded.unwrap().warnings;
    assert_eq!(warnings, ["environment variable LIFEBOAT_NMAE is not a setting and has no effect"]);
    let links = [
        ("LIFEBOAT_SERVICE_HOST", "10.0.0.1"),
        ("LIFEBOAT_SERVICE_PORT", "7400"),
        ("LIFEBOAT_SERVICE_PORT_HTTP", "7400"),
        ("LIFEBOAT_PORT", "tcp://10.0.0.1:7400"),
        ("LIFEBOAT_PORT_7400_TCP", "tcp://10.0.0.1:7400"),
        ("LIFEBOAT_PORT_7400_TCP_ADDR", "10.0.0.1"),
        ("LIFEBOAT_PEERS_PORT_7401_TCP_PROTO", "tcp"),
    ];
    assert_eq!(run(env(&links)).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    assert_eq!(accepted(env(&[("LIFEBOAT_SITE", ""), ("LIFEBOAT_CONFIG", "")])).site, "default");
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let env = vec![(OsString::from("LIFEBOAT_SITE"), OsString::from_vec(vec![0xff]))];
    let message = load(&Sources { env, ..Sources::default() }).unwrap_err().to_string();
    assert!(message.contains("site: the value is not valid UTF-8 (environment variable LIFEBOAT_SITE)"), "{message}");
}

#[test]
fn every_bad_value_is_refused_with_its_setting_and_source() {
    let long_name: &'static str = Box::leak("a".repeat(64).into_boxed_str());
    let bad = [
        ("name", "", "1 to 63 characters"),
        ("name", long_name, "this one has 64"),
        ("name", "N1", "'N' cannot stand in a name"),
        ("site", "a_b", "'_' cannot"),
        ("role", "witness", "voter or mirror"),
        ("data_dir", "", "a directory is wanted"),
        ("client_listen", "localhost:7400", "an IP address and a port"),
        ("client_listen", "127.0.0.1", "an IP address and a port"),
        ("peer_listen", "127.0.0.1:70000", "an IP address and a port"),
        ("client_url", "https://a:1", "https is not supported yet"),
        ("client_url", "a:1", "as http://a:1"),
        ("peer_url", "http://a:1/path", "nothing more is wanted"),
        ("peer_url", "http://a:1?x", "nothing more is wanted"),
        ("peer_url", "http://", "is not a host"),
        ("peer_url", "http://u@a:1", "nothing more is wanted"),
        ("peer_url", "http://::1:7401", "is not a host"),
        ("peer_url", "http://[::1:7401", "is not a"),
        ("peer_url", "http://a:", "is not a port"),
        ("peer_url", "http://a:0", "is not a port"),
        ("bootstrap_expect", "0", "from 1 to 9"),
        ("discover", "dns:", "host:port or dns:name[:port]"),
        ("join", "n1:7401", "as http://n1:7401"),
        ("canary_interval_ms", "never", "a whole number"),
        ("webhooks", "https://a/hook", "not supported yet"),
        ("webhooks", "http://a/ho ok", "visible ASCII"),
        ("webhooks", "http://:1/hook", "is not a host"),
        ("webhooks", "http://u@a/", "nothing more is wanted"),
        ("kubernetes_label", "a/b/c", "not the key of a label"),
        ("kubernetes_label", "-role", "not the key of a label"),
        ("kubernetes_pod", "a/b", "not the name of a pod"),
        ("kubernetes_api", "https://a/b", "nothing more is wanted"),
        ("kubernetes_api", "ftp://a", "a URL is wanted"),
        ("seed", "", "a file is wanted"),
        ("bootstrap", "yes", "true or false"),
        ("heartbeat_ms", "1", "from 10 to"),
        ("heartbeat_ms", "1 day", "not a unit of time"),
        ("heartbeat_ms", "-1", "a whole number"),
        ("election_min_ms", "0", "from 20 to"),
        ("election_max_ms", "2h", "from 21 to"),
        ("max_value_bytes", "0", "from 1 to"),
        ("max_value_bytes", "1GiB", "from 1 to"),
        ("max_value_bytes", "1.5MiB", "not a unit of size"),
        ("request_timeout_ms", "5", "from 100 to"),
        ("wal_segment_bytes", "1", "from 65536 to"),
        ("wal_memory_bytes", "99999999999999999999", "too large"),
        ("wal_keep_bytes", "99999999TiB", "too large"),
        ("link_compression", "gzip", "zstd or off"),
        ("link_bandwidth_bytes", "1KiB", "16384"),
        ("tail_bytes", "64mb", "not a unit of size"),
        ("overlay_bytes", "", "a whole number"),
        ("value_cache_bytes", "2TiB", "from 0 to"),
        ("table_cache_bytes", "1KiB", "from 65536 to"),
        ("write_queue", "0", "from 1 to"),
        ("write_queue", "1KiB", "a plain whole number"),
        ("history_keep_ms", "1d", "not a unit of time"),
        ("history_keep_revisions", "-1", "a whole number"),
        ("compaction_percent", "51", "50"),
        ("verify_bytes_per_second", "-1", "a whole number"),
        ("delta_keep_ms", "99999999h", "from 0 to"),
        ("disk_reserve_bytes", "1KiB", "from 65536 to"),
        ("disk_quota_bytes", "-1", "a whole number"),
        ("max_outcomes", "0", "from 1 to"),
        ("max_watchers", "9999999", "from 0 to"),
        ("watch_buffer_bytes", "1KiB", "from 65536 to"),
        ("watch_slow_timeout_ms", "99ms", "from 100 to"),
        ("rpo_seconds", "0", "from 1 to"),
        ("rto_seconds", "1m", "a plain whole number"),
        ("mirror_wait_ms", "1d", "not a unit of time"),
        ("log", "lifeboat=loud", "not a filter"),
        ("log_format", "xml", "text or json"),
    ];
    for setting in SETTINGS {
        assert!(bad.iter().any(|(name, _, _)| *name == setting.name), "no bad value of {} is tested", setting.name);
    }
    for (name, value, why) in bad {
        let flag = format!("flag --{}", Setting::find(name).unwrap().flag());
        refused(flags(&[(name, value)]), &[&format!("{name}: "), why, &format!("given: {value:?}"), &flag]);
    }
}

#[test]
fn a_value_of_the_wrong_type_in_a_file_is_refused() {
    for (text, name, why) in [
        ("site = 5", "site", "a string is wanted"),
        ("bootstrap = \"true\"", "bootstrap", "true or false is wanted"),
        ("join = \"http://a:1\"", "join", "an array of strings is wanted"),
        ("join = [1]", "join", "an array of strings is wanted"),
        ("write_queue = \"5\"", "write_queue", "a whole number is wanted"),
        ("heartbeat_ms = 1.5", "heartbeat_ms", "a whole number of milliseconds"),
        ("tail_bytes = true", "tail_bytes", "a whole number of bytes"),
        ("tail_bytes = -5", "tail_bytes", "a whole number"),
    ] {
        refused(file(text), &[&format!("{name}: "), why, "file ", "member.toml"]);
    }
}

#[test]
fn values_that_do_not_go_together_are_refused_with_both_sources() {
    let case = Case {
        file: Some("bootstrap = true"),
        env: vec![("LIFEBOAT_ROLE", "mirror"), ("LIFEBOAT_JOIN", "http://a:1")],
        ..Case::default()
    };
    refused(case, &["role: ", "must be a voter", "member.toml", "environment variable LIFEBOAT_ROLE"]);
    accepted(Case {
        file: Some("bootstrap = true"),
        env: vec![("LIFEBOAT_ROLE", "mirror")],
        flags: vec![("bootstrap", "false"), ("join", "http://a:1")],
        ..Case::default()
    });
    let wildcards = [("client_listen", "0.0.0.0:7400"), ("peer_listen", "[::]:7401")];
    refused(flags(&wildcards), &["client_url: must be given, because client_listen is 0.0.0.0:7400", "peer_url: must"]);
    for (given, words) in [
        ([("role", "mirror"), ("bootstrap", "true")], "role: the first member of a cluster must be a voter"),
        (
            [("heartbeat_ms", "200"), ("log", "info")],
            "election_min_ms: must be at least twice heartbeat_ms, which is 200",
        ),
        ([("election_max_ms", "300"), ("log", "info")], "election_max_ms: must be greater than election_min_ms"),
        ([("request_timeout_ms", "100"), ("log", "info")], "request_timeout_ms: must be greater than heartbeat_ms"),
        ([("peer_listen", "127.0.0.1:7400"), ("log", "info")], "peer_listen: clients and members need two addresses"),
        ([("max_value_bytes", "2MiB"), ("tail_bytes", "1MiB")], "tail_bytes: must hold one value at least"),
    ] {
        refused(flags(&given), &[words]);
    }
}

#[test]
fn places_to_look_for_members_are_read_in_both_forms() {
    let given = flags(&[
        ("discover", "a.example:7000"),
        ("discover", "10.0.0.1"),
        ("discover", "http://[::1]:9/"),
        ("discover", "dns:lifeboat.svc:7500"),
        ("discover", "dns:lifeboat"),
        ("bootstrap_expect", "3"),
    ]);
    let config = accepted(given);
    let address = |host: &str, port| Discovery::Address { host: host.into(), port };
    let name = |name: &str, port| Discovery::Dns { name: name.into(), port };
    let expected = [
        address("a.example", 7000),
        address("10.0.0.1", 7401),
        address("[::1]", 9),
        name("lifeboat.svc", 7500),
        name("lifeboat", 7401),
    ];
    assert_eq!(config.discover, expected);
    assert_eq!(config.bootstrap_expect, Some(3));
    for bad in ["dns:", "a b", "dns:[::1]", "a:0", "a:99999", "https://a"] {
        refused(flags(&[("discover", bad)]), &["discover: "]);
    }
}

#[test]
fn one_set_of_addresses_never_has_room_for_two_clusters() {
    let with = |expect: &'static str, places: usize| {
        let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        let mut given = vec![("bootstrap_expect", expect)];
        given.extend(all[..places].iter().map(|place| ("discover", *place)));
        flags(&given)
    };
    for (expect, places, words) in [
        ("3", 0, "discover: must be given"),
        ("3", 2, "lists 2 members, of which 3 are expected"),
        ("3", 6, "two clusters of 3"),
        ("1", 2, "two clusters of 1"),
        ("0", 1, "bootstrap_expect: must be from 1 to 9"),
        ("10", 6, "bootstrap_expect: must be from 1 to 9"),
    ] {
        refused(with(expect, places), &[words]);
    }
    for (expect, places) in [("3", 3), ("3", 5), ("1", 1), ("2", 3)] {
        accepted(with(expect, places));
    }
    let both = [("bootstrap", "true"), ("bootstrap_expect", "1"), ("discover", "10.0.0.1")];
    refused(flags(&both), &["bootstrap_expect: a member founds a cluster alone or together"]);
}

#[test]
fn all_errors_are_listed_at_once() {
    let case = Case {
        file: Some("nmae = 1"),
        env: vec![("LIFEBOAT_ROLE", "x")],
        flags: vec![("log_format", "y")],
        bare: true,
    };
    refused(case, &["nmae", "role", "log_format", "name: must be given", "data_dir: must be given"]);
}

#[test]
fn the_operations_page_and_the_example_name_every_setting_and_its_default() {
    let page = include_str!("../../docs/operations.md");
    let example = include_str!("../../examples/member.toml");
    for setting in SETTINGS {
        let row = format!("| `{}` |", setting.name);
        let row = page.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("{row} is missing"));
        if let Some(default) = setting.default {
            assert!(row.contains(&format!("| `{default}` |")), "the default of {} is {default}:\n{row}", setting.name);
        }
        assert!(example.contains(&format!("{} = ", setting.name)), "{} is missing in the example", setting.name);
    }
}

#[test]
fn the_example_is_valid_and_shows_the_true_defaults() {
    let example = include_str!("../../examples/member.toml");
    let dir = tempfile::tempdir().unwrap();
    let load_text = |text: &str| {
        let path = dir.path().join("member.toml");
        std::fs::write(&path, text).unwrap();
        load(&Sources { file: Some(path), ..Sources::default() }).unwrap().config
    };
    let as_it_stands = load_text(example);
    // The lines that are commented out are settings, and change nothing when they are not.
    let is_setting = |line: &str| {
        line.strip_prefix("# ")
            .is_some_and(|rest| rest.split_once(" = ").is_some_and(|(name, _)| Setting::find(name).is_some()))
    };
    let lines = example.lines().map(|line| if is_setting(line) { &line[2..] } else { line });
    let with_all = load_text(&lines.collect::<Vec<_>>().join("\n"));
    assert_eq!(as_it_stands, with_all);
    assert_eq!(with_all.name, "n2");
}
