//! Requests with adapters: places for them, and whose blocks are whose.

mod common;

use common::*;
use quire_scheduler::*;

fn with_adapter(id: u64, name: &str) -> Request {
    Request { adapter: Some(Adapter::new(name, name, ())), ..request(id, 4, 3) }
}

fn places(max_loras: u32, adapter_patience_us: u64) -> Driver {
    Driver::new(SchedulerConfig { max_loras, adapter_patience_us, ..config() })
}

#[test]
fn an_adapter_too_many_waits_and_holds_up_nobody_else() {
    let mut driver = places(2, u64::MAX);
    let adapters = [(1, "a"), (2, "b"), (3, "c"), (4, "a"), (6, "c"), (7, "b")];
    driver.add(adapters.map(|(id, name)| with_adapter(id, name)));
    driver.add([request(5, 4, 3)]);
    let plan = driver.step().unwrap();
    assert_eq!(ids(&plan), [1, 2, 4, 7, 5]);
    assert!(plan.admitted[2].adapter.as_ref().is_some_and(|adapter| &**adapter.name() == "a"));
    assert_eq!(driver.scheduler.stats().num_waiting_capacity, 2);
    driver.step().unwrap();
    driver.step().unwrap();
    assert_eq!(ids(&driver.step().unwrap()), [3, 6], "the places are free again");
    driver.run();
    assert_eq!(driver.heard.ends.len(), 7);
}

#[test]
fn the_same_weights_under_two_names_take_one_place_and_share_blocks() {
    let mut driver = places(1, 0);
    let named = |id, name| Request {
        adapter: Some(Adapter::new(name, "the same", ())),
        ..with_prompt(id, (0..9).collect(), 2)
    };
    driver.add([named(1, "a"), named(2, "b")]);
    assert_eq!(ids(&driver.step().unwrap()), [1, 2]);
    driver.run();
    assert_eq!(driver.heard.cached[&2], 8);
}

/// A name that is loaded again with other weights.
#[test]
fn other_weights_of_the_same_name_hit_none_of_the_old_blocks() {
    let mut driver = places(1, 0);
    let loaded = |id, key: &str| Request {
        adapter: Some(Adapter::new("a", key, ())),
        ..with_prompt(id, (0..9).collect(), 2)
    };
    for (id, key, cached) in [(1, "first", 0), (2, "second", 0), (3, "first", 8), (4, "second", 8)] {
        driver.add([loaded(id, key)]);
        driver.run();
        assert_eq!(driver.heard.cached[&id], cached, "request {id}");
    }
}

/// Without patience a stream of requests for one adapter would keep another's out for ever.
#[test]
fn who_was_passed_over_for_long_is_next() {
    let served_after = |patience| {
        let mut driver = places(1, patience);
        driver.add([with_adapter(1, "a"), with_adapter(2, "b")]);
        let mut id = 2;
        let mut steps = 0;
        while !driver.heard.ends.contains_key(&2) && steps < 200 {
            id += 1;
            driver.add([with_adapter(id, "a")]);
            driver.step();
            steps += 1;
        }
        driver.run();
        assert_eq!(driver.heard.ends.len() as u64, id);
        steps
    };
    // A step is a microsecond here, and a request three steps.
    assert_eq!(served_after(0), 6);
    assert!((30..40).contains(&served_after(30)));
    assert_eq!(served_after(u64::MAX), 200);
}

#[test]
fn a_place_that_somebody_waits_for_still_takes_requests_without_adapters() {
    let mut driver = places(1, 0);
    driver.add([with_adapter(1, "a"), with_adapter(2, "b"), with_adapter(3, "a"), request(4, 4, 3)]);
    assert_eq!(ids(&driver.step().unwrap()), [1, 4]);
    driver.run();
    assert_eq!(driver.heard.ends.len(), 4);
}
