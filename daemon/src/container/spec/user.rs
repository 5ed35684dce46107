//! Who a container's first process runs as: the request, the image, and the image's user database.

use std::collections::BTreeSet;

use super::SpecError;
use crate::container::config::{Security, SupplementalGroupsPolicy};

/// A user as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups in ascending order, the primary one included: a process whose primary group is not among them
    /// could shed that group and so pass permissions meant to keep it out (CVE-2022-36109).
    pub additional_gids: Vec<u32>,
    /// Home directory by `/etc/passwd`, if it says one.
    pub home: Option<String>,
}

/// Finds the user of a container.
///
/// `image_user` is the image's `user[:group]`; `passwd` and `group` are the texts of these files in the image, empty
/// if it has none. `run_as_user` or `run_as_username` replace the image's user together with its group. A uid that
/// the database does not know has group 0, as everywhere in the field.
///
/// # Errors
/// A user or group that is given by name and not in the database.
pub fn resolve_user(
    image_user: &str,
    security: &Security,
    passwd: &str,
    group: &str,
) -> Result<ResolvedUser, SpecError> {
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let (wanted, wanted_group) = match (security.run_as_user, &security.run_as_username) {
        (Some(uid), _) => (Wanted::Id(uid), ""),
        (None, Some(name)) => (Wanted::Name(name), ""),
        (None, None) => (Wanted::parse(image_name), image_group),
    };
    let of = match &security.run_as_username {
        Some(_) => "config.linux.security_context.run_as_username",
        None => "user of the image",
    };
    let entry = match wanted {
        Wanted::Id(uid) => PasswdEntry::all(passwd).find(|entry| entry.uid == uid),
        Wanted::Name(name) => {
            let found = PasswdEntry::all(passwd).find(|entry| entry.name == name);
            Some(found.ok_or_else(|| SpecError::NoSuchUser {
                of,
                name: name.to_owned(),
            })?)
        }
    };
    let uid = match (&wanted, &entry) {
        (Wanted::Name(_), Some(entry)) => entry.uid,
        (Wanted::Id(uid), _) => *uid,
        (Wanted::Name(name), None) => {
            return Err(SpecError::NoSuchUser {
                of,
                name: (*name).to_owned(),
            });
        }
    };
    let gid = match security.run_as_group {
        Some(gid) => gid,
        None if !wanted_group.is_empty() => group_id(wanted_group, group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let home = entry
        .as_ref()
        .map(|entry| entry.home)
        .filter(|home| home.starts_with('/'));
    Ok(ResolvedUser {
        uid,
        gid,
        additional_gids: groups(gid, entry.as_ref().map(|entry| entry.name), security, group),
        home: home.map(str::to_owned),
    })
}

/// A user by number or by name.
enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    /// As images write it: a number if it is one, and root if there is nothing.
    fn parse(text: &'a str) -> Self {
        match text {
            "" => Self::Id(0),
            text => number(text).map_or(Self::Name(text), Self::Id),
        }
    }
}

fn number(text: &str) -> Option<u32> {
    // `parse` takes a sign.
    text.parse()
        .ok()
        .filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn group_id(wanted: &str, group: &str) -> Result<u32, SpecError> {
    if let Some(gid) = number(wanted) {
        return Ok(gid);
    }
    let found = GroupEntry::all(group).find(|entry| entry.name == wanted);
    found
        .map(|entry| entry.gid)
        .ok_or_else(|| SpecError::NoSuchGroup {
            name: wanted.to_owned(),
        })
}

fn groups(gid: u32, user: Option<&str>, security: &Security, group: &str) -> Vec<u32> {
    let mut gids = BTreeSet::from([gid]);
    gids.extend(&security.supplemental_groups);
    if let (SupplementalGroupsPolicy::Merge, Some(user)) =
        (security.supplemental_groups_policy, user)
    {
        let has_user =
            |entry: &GroupEntry<'_>| entry.members.split(',').any(|member| member.trim() == user);
        gids.extend(
            GroupEntry::all(group)
                .filter(has_user)
                .map(|entry| entry.gid),
        );
    }
    gids.into_iter().collect()
}

/// A line of passwd(5).
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    /// Lines that are no entries are skipped: the file comes from an image and has whatever was put there.
    fn all(text: &'a str) -> impl Iterator<Item = Self> {
        entries(text).filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
            let home = fields.nth(1).unwrap_or_default();
            Some(Self {
                name,
                uid,
                gid,
                home,
            })
        })
    }
}

/// A line of group(5).
struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn all(text: &'a str) -> impl Iterator<Item = Self> {
        entries(text).filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let gid = number(fields.next()?)?;
            Some(Self {
                name,
                gid,
                members: fields.next().unwrap_or_default(),
            })
        })
    }
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '+', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "\
# comment
root:x:0:0:root:/root:/bin/sh
+nis
daemon:x:1:1:daemon:/usr/sbin:/bin/sh
broken
web:x:1000:1001:Web:/home/web:/bin/sh
other:x:1000:7::/home/other:/bin/sh
nohome:x:1002:1002
twelve12:x:not:a:number:/:/
";
    const GROUP: &str = "\
root:x:0:
wheel:x:10:root,web
staff:x:50: web ,other
web:x:1001:
video:x:44:daemon
bad:x:x:web
";

    fn resolve(image: &str, security: Security) -> Result<ResolvedUser, SpecError> {
        resolve_user(image, &security, PASSWD, GROUP)
    }

    fn ids(image: &str, security: Security) -> (u32, u32, Vec<u32>) {
        let user = resolve(image, security).unwrap();
        (user.uid, user.gid, user.additional_gids)
    }

    fn user(uid: u32) -> Security {
        Security {
            run_as_user: Some(uid),
            ..Security::default()
        }
    }

    #[test]
    fn the_images_user_in_all_its_forms() {
        for (image, expected) in [
            ("", (0, 0, vec![0, 10])),
            ("0", (0, 0, vec![0, 10])),
            ("root", (0, 0, vec![0, 10])),
            ("web", (1000, 1001, vec![10, 50, 1001])),
            ("1000", (1000, 1001, vec![10, 50, 1001])),
            ("web:video", (1000, 44, vec![10, 44, 50])),
            ("web:99", (1000, 99, vec![10, 50, 99])),
            ("4711", (4711, 0, vec![0])),
            ("4711:4712", (4711, 4712, vec![4712])),
            (":video", (0, 44, vec![10, 44])),
            ("web:", (1000, 1001, vec![10, 50, 1001])),
            ("nohome", (1002, 1002, vec![1002])),
        ] {
            assert_eq!(ids(image, Security::default()), expected, "{image:?}");
        }
    }

    #[test]
    fn the_request_replaces_user_and_group_of_the_image() {
        assert_eq!(ids("web:video", user(0)), (0, 0, vec![0, 10]));
        assert_eq!(ids("web:video", user(5)), (5, 0, vec![0]));
        let group = Security {
            run_as_group: Some(77),
            ..user(1000)
        };
        assert_eq!(ids("", group), (1000, 77, vec![10, 50, 77]));
        let named = Security {
            run_as_username: Some("daemon".into()),
            ..Security::default()
        };
        assert_eq!(ids("web", named.clone()), (1, 1, vec![1, 44]));
        let named = Security {
            run_as_group: Some(0),
            ..named
        };
        assert_eq!(ids("web", named), (1, 0, vec![0, 44]));
    }

    #[test]
    fn supplemental_groups_merge_or_stand_alone() {
        let merge = Security {
            supplemental_groups: vec![60, 50, 60],
            ..user(1000)
        };
        assert_eq!(ids("", merge.clone()), (1000, 1001, vec![10, 50, 60, 1001]));
        let strict = Security {
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict,
            ..merge
        };
        assert_eq!(ids("", strict), (1000, 1001, vec![50, 60, 1001]));
    }

    #[test]
    fn names_that_are_not_there() {
        let message = |result: Result<ResolvedUser, SpecError>| result.unwrap_err().to_string();
        assert_eq!(
            message(resolve("ghost", Security::default())),
            "user of the image: unable to find user ghost: no users found"
        );
        assert_eq!(
            message(resolve("web:ghost", Security::default())),
            "user of the image: unable to find group ghost: no groups found"
        );
        // A name that looks like a number but is none stays a name.
        assert!(resolve("-1", Security::default()).is_err());
        assert!(resolve("99999999999", Security::default()).is_err());
        let named = Security {
            run_as_username: Some("1000".into()),
            ..Security::default()
        };
        assert!(
            resolve("", named).is_err(),
            "run_as_username is a name, never a number"
        );
        assert!(resolve_user("web", &Security::default(), "", "").is_err());
    }

    #[test]
    fn an_image_without_a_database() {
        for image in ["", "0:0", "1000"] {
            let found = resolve_user(image, &Security::default(), "", "").unwrap();
            assert_eq!(
                (found.gid, found.additional_gids, found.home),
                (0, vec![0], None)
            );
        }
    }

    #[test]
    fn home_directories() {
        let home = |image| resolve(image, Security::default()).unwrap().home;
        assert_eq!(home("web").as_deref(), Some("/home/web"));
        assert_eq!(home("").as_deref(), Some("/root"));
        assert_eq!(home("nohome"), None);
        assert_eq!(home("4711"), None);
    }
}
