//! Which members a development cluster has, where each listens and where each keeps its data. No I/O but the small
//! file in which a data directory remembers its shape.
//!
//! A member of a cluster keeps the addresses under which the others know it. So the shape belongs to the data
//! directory: asking for another one is refused, and asking for none takes what is there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::MemberRole;

/// The file that remembers the shape.
const SHAPE_FILE: &str = "dev.toml";
/// From the ports of one member to those of the next.
const PORT_STEP: u16 = 10;
/// The site of the voters.
const PRIMARY_SITE: &str = "east";
/// The site of the mirror.
const STANDBY_SITE: &str = "west";

/// How many voters and at which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// 1 for a single member without a mirror, else the number of voters.
    pub members: u16,
    /// The loopback address of all.
    pub host: IpAddr,
    /// The first member's port for clients.
    pub base_port: u16,
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMember {
    /// `n1`, `n2` …; the mirror is `m1`.
    pub name: String,
    /// `east` or `west`.
    pub site: &'static str,
    /// Voter or mirror.
    pub role: MemberRole,
    /// Where clients are served.
    pub client: SocketAddr,
    /// Where members are served.
    pub peer: SocketAddr,
    /// Its data directory.
    pub dir: PathBuf,
}

impl PlannedMember {
    /// Its address for clients.
    pub fn client_url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// The file its process logs to.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }
}

/// The members of a cluster of this shape, voters first.
pub fn members(shape: Shape, data_dir: &Path) -> Vec<PlannedMember> {
    let member = |position: u16, name: String, site: &'static str, role: MemberRole| {
        let client_port = shape.base_port + position * PORT_STEP;
        PlannedMember {
            dir: data_dir.join(&name),
            name,
            site,
            role,
            client: SocketAddr::new(shape.host, client_port),
            peer: SocketAddr::new(shape.host, client_port + 1),
        }
    };
    let mut members: Vec<PlannedMember> =
        (0..shape.members).map(|i| member(i, format!("n{}", i + 1), PRIMARY_SITE, MemberRole::Voter)).collect();
    if shape.members > 1 {
        members.push(member(shape.members, "m1".to_owned(), STANDBY_SITE, MemberRole::Mirror));
    }
    members
}

/// The arguments of `lifeboat` that run this member. They are the same at every start: a member with data does not
/// look at `--bootstrap` and `--join`.
pub fn serve_arguments(member: &PlannedMember, first: &PlannedMember, extra: &[String]) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned(), "--exit-with-parent".to_owned()];
    let mut add = |flag: &str, value: String| arguments.extend([format!("--{flag}"), value]);
    add("name", member.name.clone());
    add("site", member.site.to_owned());
    add("role", member.role.to_string());
    add("data-dir", member.dir.display().to_string());
    add("client-listen", member.client.to_string());
    add("peer-listen", member.peer.to_string());
    if member.name == first.name {
        arguments.push("--bootstrap".to_owned());
    } else {
        add("join", format!("http://{}", first.peer));
    }
    arguments.extend_from_slice(extra);
    arguments
}

/// What the flags ask for; what is not asked for is as the data directory has it, or the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// `--members`
    pub members: Option<u16>,
    /// `--host`
    pub host: Option<IpAddr>,
    /// `--base-port`
    pub base_port: Option<u16>,
}

/// The shape to run: what is wanted, checked against what the data directory was made with.
pub fn settle(wanted: Wanted, kept: Option<Shape>) -> Result<Shape, String> {
    let default = Shape { members: 3, host: IpAddr::from([127, 0, 0, 1]), base_port: 7400 };
    let like = kept.unwrap_or(default);
    let shape = Shape {
        members: wanted.members.unwrap_or(like.members),
        host: wanted.host.unwrap_or(like.host),
        base_port: wanted.base_port.unwrap_or(like.base_port),
    };
    if !matches!(shape.members, 1 | 3 | 5) {
        return Err(format!("--members is {}, but must be 1, 3 or 5", shape.members));
    }
    if !shape.host.is_loopback() {
        return Err(format!("--host is {}, but must be a loopback address", shape.host));
    }
    let last_port = u32::from(shape.base_port) + u32::from(shape.members * PORT_STEP) + 1;
    if shape.base_port == 0 || last_port > u32::from(u16::MAX) {
        return Err(format!("--base-port is {}; the ports up to {last_port} are needed", shape.base_port));
    }
    match kept {
        Some(kept) if kept != shape => Err(format!(
            "the data directory was made with --members {} --host {} --base-port {}; give the same or none of them, \
             or another --data-dir",
            kept.members, kept.host, kept.base_port
        )),
        _ => Ok(shape),
    }
}

/// The shape that the data directory was made with; none when it is new.
pub fn load_shape(data_dir: &Path) -> io::Result<Option<Shape>> {
    let path = data_dir.join(SHAPE_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let shape = toml::from_str(&text).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?;
    Ok(Some(shape))
}

/// Remembers the shape in the data directory.
pub fn save_shape(data_dir: &Path, shape: Shape) -> io::Result<()> {
    let text = toml::to_string(&shape).map_err(io::Error::other)?;
    std::fs::write(data_dir.join(SHAPE_FILE), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(members: u16, base_port: u16) -> Shape {
        Shape { members, host: IpAddr::from([127, 0, 0, 1]), base_port }
    }

    #[test]
    fn three_voters_and_a_mirror_stand_ten_ports_apart() {
        let shape = settle(Wanted::default(), None).unwrap();
        assert_eq!(shape, self::shape(3, 7400));
        let found: Vec<_> = members(shape, Path::new("data"))
            .into_iter()
            .map(|m| (m.name, m.site, m.role.to_string(), m.client.port(), m.peer.port(), m.dir))
            .collect();
        let voter = "voter".to_owned();
        let expected = [
            ("n1".to_owned(), "east", voter.clone(), 7400, 7401, PathBuf::from("data/n1")),
            ("n2".to_owned(), "east", voter.clone(), 7410, 7411, PathBuf::from("data/n2")),
            ("n3".to_owned(), "east", voter, 7420, 7421, PathBuf::from("data/n3")),
            ("m1".to_owned(), "west", "mirror".to_owned(), 7430, 7431, PathBuf::from("data/m1")),
        ];
        assert_eq!(found, expected);
        assert_eq!(members(self::shape(5, 9000), Path::new("d")).last().unwrap().client.port(), 9050);
        let single = members(self::shape(1, 9000), Path::new("d"));
        assert_eq!(single.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["n1"]);
    }

    #[test]
    fn the_first_member_founds_and_the_others_join_it() {
        let members = members(shape(3, 7400), Path::new("data"));
        let first = serve_arguments(&members[0], &members[0], &[]).join(" ");
        assert_eq!(
            first,
            "serve --exit-with-parent --name n1 --site east --role voter --data-dir data/n1 \
             --client-listen 127.0.0.1:7400 --peer-listen 127.0.0.1:7401 --bootstrap"
        );
        let mirror = serve_arguments(&members[3], &members[0], &["--log".to_owned(), "debug".to_owned()]).join(" ");
        assert_eq!(
            mirror,
            "serve --exit-with-parent --name m1 --site west --role mirror --data-dir data/m1 \
             --client-listen 127.0.0.1:7430 --peer-listen 127.0.0.1:7431 --join http://127.0.0.1:7401 --log debug"
        );
    }

    #[test]
    fn a_data_directory_keeps_its_shape() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_shape(dir.path()).unwrap(), None);
        let made = shape(3, 8400);
        save_shape(dir.path(), made).unwrap();
        let kept = load_shape(dir.path()).unwrap();
        assert_eq!(kept, Some(made));
        assert_eq!(settle(Wanted::default(), kept).unwrap(), made);
        let same = Wanted { base_port: Some(8400), ..Wanted::default() };
        assert_eq!(settle(same, kept).unwrap(), made);
        let other = Wanted { members: Some(1), ..Wanted::default() };
        assert!(settle(other, kept).unwrap_err().contains("made with --members 3 --host 127.0.0.1 --base-port 8400"));
        std::fs::write(dir.path().join(SHAPE_FILE), "members = 3").unwrap();
        assert!(load_shape(dir.path()).unwrap_err().to_string().contains("dev.toml"));
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        for (wanted, why) in [
            (Wanted { members: Some(2), ..Wanted::default() }, "must be 1, 3 or 5"),
            (Wanted { base_port: Some(65520), ..Wanted::default() }, "the ports up to 65551"),
            (Wanted { base_port: Some(0), ..Wanted::default() }, "--base-port is 0"),
            (Wanted { host: Some(IpAddr::from([10, 0, 0, 1])), ..Wanted::default() }, "a loopback address"),
        ] {
            assert!(settle(wanted, None).unwrap_err().contains(why), "{wanted:?}");
        }
    }
}
