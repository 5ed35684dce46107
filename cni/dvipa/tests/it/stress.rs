//! Many processes at once, and some of them killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::json;

use crate::lab::{Dice, Lab, Said, ips};

const WORKERS: usize = 32;
const PODS: usize = 1000;

/// Runs an operation, and kills it after a moment if the dice say so.
fn maybe_killed(lab: &Lab, verb: &str, id: &str, pod: &crate::lab::Ns, dice: &Dice) -> Said {
    let mut child = lab.start(lab.command(&[], verb, id, &pod.path), &lab.config);
    if dice.below(4) == 0 {
        // It is this test's purpose to hit any moment.
        thread::sleep(Duration::from_micros(dice.below(60_000)));
        drop(child.kill());
    }
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_thousand_pods_by_32_processes_with_random_kills_leak_and_share_nothing() {
    let mut lab = Lab::new();
    lab.set("vipaRanges", json!(["198.18.0.0/26", "2001:db8::/122"]));
    lab.set("ipMasq", json!(true));
    let lab = lab;
    let dice = Dice::new();
    let seeds: Vec<u64> = (0..WORKERS).map(|_| dice.below(u64::MAX >> 33)).collect();
    let next = AtomicUsize::new(0);
    // Every address that a pod has now. Nobody may get one of them.
    let live: Mutex<BTreeMap<IpAddr, String>> = Mutex::new(BTreeMap::new());
    let kills = AtomicUsize::new(0);
    let pods: Vec<_> = (0..WORKERS).map(|i| lab.pod(&format!("w{i}"))).collect();
    thread::scope(|scope| {
        for (pod, seed) in pods.iter().zip(&seeds) {
            let (lab, next, live, kills) = (&lab, &next, &live, &kills);
            scope.spawn(move || {
                let dice = Dice::from(*seed);
                let mut kept: Option<String> = None;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= PODS {
                        break;
                    }
                    if let Some(before) = kept.take() {
                        live.lock().unwrap().retain(|_, id| *id != before);
                        if !maybe_killed(lab, "DEL", &before, pod, &dice).success {
                            kills.fetch_add(1, Ordering::Relaxed);
                            lab.del(&before, pod).ok();
                        }
                    }
                    let id = format!("p{number}");
                    let mut said = maybe_killed(lab, "ADD", &id, pod, &dice);
                    if !said.success {
                        kills.fetch_add(1, Ordering::Relaxed);
                        if dice.below(2) == 0 {
                            lab.del(&id, pod).ok();
                            continue;
                        }
                        said = lab.add(&id, pod);
                    }
                    for ip in ips(&said.ok()) {
                        let other = live.lock().unwrap().insert(ip, id.clone());
                        assert_eq!(other, None, "{ip} was given twice");
                    }
                    kept = Some(id);
                }
            });
        }
    });
    let live = live.into_inner().unwrap();
    println!(
        "{} kills, {} pods are left",
        kills.load(Ordering::Relaxed),
        live.len() / 2
    );
    assert!(kills.load(Ordering::Relaxed) > PODS / 10);
    let pods_have: BTreeSet<IpAddr> = pods
        .iter()
        .flat_map(|pod| pod.addresses())
        .filter(|address| address.protocol == 122)
        .map(|address| address.ip)
        .collect();
    let live: BTreeMap<IpAddr, String> = live;
    let wanted: BTreeSet<IpAddr> = live.keys().copied().collect();
    assert_eq!(lab.leases(), wanted, "leases");
    assert_eq!(lab.active(), wanted, "routes of the host");
    assert_eq!(pods_have, wanted, "addresses of pods");
    assert_eq!(lab.masqueraded(), wanted, "masquerading");
    assert_eq!(lab.pairs().len() * 2, wanted.len(), "interfaces");
    lab.gc(&[]).ok();
    lab.assert_clean("after GC");
}
