//! Filters whose configuration comes by discovery: who is asked for, and who fails alone.

use super::*;

/// The recorded mesh, with such filters in front of two chains.
fn with_extensions(of: [(&str, &str); 2]) -> Update {
    let mut file = fixture("istiod-1.31/01-plain", "Listener");
    for (chain, name) in of {
        let listeners = file["resources"].as_array_mut().unwrap().iter_mut();
        let chains = listeners.filter_map(|listener| listener["resource"]["filter_chains"].as_array_mut()).flatten();
        let found = chains.into_iter().find(|one| one["name"] == chain).unwrap();
        let manager = &mut found["filters"].as_array_mut().unwrap().last_mut().unwrap()["typed_config"];
        let wasm = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
        let filter = json!({"name": name, "config_discovery": {"config_source": {"ads": {}}, "type_urls": [wasm]}});
        manager["http_filters"].as_array_mut().unwrap().insert(0, filter);
    }
    update(ResourceType::Listener, &file)
}

#[test]
fn a_name_that_cannot_be_asked_for_fails_its_chain_alone() {
    let other = "inbound-vip|7000|http|auto.shop.svc.cluster.local";
    for name in ["", "*"] {
        let mut applier = Applier::default();
        let outcome = applier.apply(with_extensions([(&web(), name), (other, "late")]));
        let wanted = Wanted::new(ResourceType::Extension, BTreeSet::from(["late".to_owned()])).unwrap();
        assert_eq!(outcome.applied.wanted, [wanted], "{name:?}");
        let Verdict::Nack(reason) = &outcome.applied.verdict else { panic!("{name:?} was accepted") };
        assert!(reason.contains(&web()) && reason.contains(&format!("{name:?}")) && !reason.contains(other), "{reason}");
        let refused = applier.report().refused;
        assert!(refused[&web()].iter().any(|one| one.reason.contains("cannot be asked for")), "{refused:?}");
        assert!(refused[other][0].reason.contains("has not come"), "{refused:?}");
    }
}

#[test]
fn names_that_cannot_be_wanted_hide_nothing_that_was_refused_before() {
    let mut applied = super::super::Applied::nack("a chain is refused".to_owned());
    want(ResourceType::Endpoint, BTreeSet::from(["*".to_owned()]), &mut applied);
    let Verdict::Nack(reason) = applied.verdict else { panic!("it was refused") };
    assert_eq!(reason, "a chain is refused; \"*\" cannot be the name of a Endpoint resource");
}
