//! Our messages of `vllm.grpc.engine` and `smg.grpc.common` are those of the package smg-grpc-proto: same fields, same
//! numbers, same types, same methods. What it has is in `fixtures/smg.txt`, written by `fixtures/smg.py`.

use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind};

const PACKAGES: [&str; 2] = ["smg.grpc.common", "vllm.grpc.engine"];

fn kind(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) => message.full_name().into(),
        Kind::Enum(kind) => kind.full_name().into(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn described(field: &FieldDescriptor) -> String {
    let mut words = vec![field.full_name().to_owned(), field.number().to_string()];
    if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
        let entries = [entry.map_entry_key_field(), entry.map_entry_value_field()];
        words.push("map".into());
        words.extend(entries.iter().map(kind));
        return words.join(" ");
    }
    if field.cardinality() == Cardinality::Repeated {
        words.push("repeated".into());
    }
    match field.containing_oneof() {
        Some(oneof) if oneof.is_synthetic() => words.push("optional".into()),
        Some(oneof) => words.push(format!("oneof={}", oneof.name())),
        None => (),
    }
    words.push(kind(field));
    words.join(" ")
}

#[test]
fn messages_and_methods_are_those_of_the_gateway() {
    let pool = DescriptorPool::decode(quire_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut ours = Vec::new();
    for message in pool.all_messages().filter(|message| !message.is_map_entry()) {
        if PACKAGES.contains(&message.package_name()) {
            ours.push(message.full_name().to_owned());
            ours.extend(message.fields().map(|field| described(&field)));
        }
    }
    for kind in pool.all_enums().filter(|kind| PACKAGES.contains(&kind.package_name())) {
        let values =
            kind.values().map(|value| format!("{}.{} {}", kind.full_name(), value.name(), value.number()));
        ours.extend(values);
    }
    for service in pool.services().filter(|service| PACKAGES.contains(&service.package_name())) {
        for m in service.methods() {
            let stream = if m.is_server_streaming() { "stream " } else { "" };
            ours.push(format!(
                "{} {} {stream}{}",
                m.full_name(),
                m.input().full_name(),
                m.output().full_name()
            ));
        }
    }
    ours.sort();
    let theirs: Vec<_> = include_str!("fixtures/smg.txt").lines().collect();
    assert!(theirs.len() > 300, "the fixture is whole");
    let missing: Vec<_> = theirs.iter().filter(|line| !ours.iter().any(|ours| ours == *line)).collect();
    let invented: Vec<_> = ours.iter().filter(|line| !theirs.contains(&line.as_str())).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing: {missing:#?}\ninvented: {invented:#?}");
}
