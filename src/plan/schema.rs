//! The JSON Schema of a plan, whole for editors and in parts for the checker.

use super::file::{Common, PlanShape};
use crate::steps::{Kind, kinds};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// A part's schema with the validator made from it.
pub struct Part {
    /// The schema document; errors' schema paths lead into it.
    pub schema: Value,
    /// Finds all errors of a value.
    pub validator: jsonschema::Validator,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Part {
    fn new(build: impl FnOnce(&mut SchemaGenerator) -> schemars::Schema) -> Result<Self, String> {
        let mut generator = generator();
        let schema = build(&mut generator).to_value();
        let document = with_definitions(schema, &mut generator);
        let validator = jsonschema::validator_for(&document).map_err(|e| e.to_string())?;
        Ok(Part { schema: document, validator })
    }

    /// The plan without the content of its steps.
    ///
    /// # Errors
    /// A schema that is none, which is a defect.
    pub fn envelope() -> Result<Self, String> {
        Part::new(|generator| generator.subschema_for::<PlanShape>())
    }

    /// The fields that every step may have.
    ///
    /// # Errors
    /// A schema that is none, which is a defect.
    pub fn common() -> Result<Self, String> {
        Part::new(|generator| generator.subschema_for::<Common>())
    }

    /// What is under a kind's key.
    ///
    /// # Errors
    /// A schema that is none, which is a defect.
    pub fn kind(kind: &Kind) -> Result<Self, String> {
        Part::new(kind.schema)
    }
}

fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12().for_deserialize().into_generator()
}

fn with_definitions(schema: Value, generator: &mut SchemaGenerator) -> Value {
    let mut document = match schema {
        Value::Object(map) => map,
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    document.insert("$defs".into(), Value::Object(generator.take_definitions(true)));
    Value::Object(document)
}

/// Names of the fields that every step may have.
pub const COMMON: &[&str] = &["id", "title", "timeout", "retry", "on_failure"];

/// The JSON Schema of a whole plan, for editors and for `handover schema`.
#[must_use]
pub fn schema() -> Value {
    let mut generator = generator();
    let mut parts = Map::new();
    for kind in kinds() {
        parts.insert(kind.name.to_owned(), (kind.schema)(&mut generator).to_value());
    }
    let _ = generator.subschema_for::<PlanShape>();
    let _ = generator.subschema_for::<Common>();
    let mut definitions = generator.take_definitions(true);

    let one_of: Vec<Value> = kinds().iter().map(|kind| json!({"required": [kind.name]})).collect();
    let mut step = definitions.remove("Common").unwrap_or_else(|| json!({}));
    if let Some(properties) = step.get_mut("properties").and_then(Value::as_object_mut) {
        properties.extend(parts);
    }
    step["description"] = "One step: an id, what every step may say, and exactly one kind.".into();
    step["oneOf"] = one_of.into();

    let mut plan = definitions.remove("Plan").unwrap_or_else(|| json!({}));
    plan["properties"]["steps"]["items"] = json!({"$ref": "#/$defs/Step"});
    definitions.insert("Step".into(), step);
    let mut document = Map::from_iter([
        ("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema")),
        ("title".to_owned(), json!("Handover plan")),
    ]);
    if let Value::Object(plan) = plan {
        document.extend(plan);
    }
    document.insert("$defs".into(), Value::Object(definitions));
    Value::Object(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_compiles_and_so_does_the_whole() {
        Part::envelope().unwrap();
        Part::common().unwrap();
        for kind in kinds() {
            Part::kind(kind).unwrap();
        }
        let whole = schema();
        let validator = jsonschema::validator_for(&whole).unwrap();
        let plan = json!({
            "handover": 1, "name": "p", "databases": {"blue": "${BLUE_URL}"}, "control": "${C}",
            "steps": [{"id": "a", "create_index": {
                "on": "blue", "indexes": [{"name": "i", "table": "t", "columns": ["c"]}]}}],
        });
        assert!(validator.is_valid(&plan), "{:?}", validator.iter_errors(&plan).collect::<Vec<_>>());
        let mut two = plan.clone();
        two["steps"][0]["title"] = json!(1);
        assert!(!validator.is_valid(&two));
        let mut none = plan;
        none["steps"][0] = json!({"id": "a"});
        assert!(!validator.is_valid(&none));
    }

    #[test]
    fn every_field_is_described_for_editors() {
        let whole = schema();
        let definitions = whole["$defs"].as_object().unwrap();
        for (name, definition) in definitions {
            for (field, schema) in definition["properties"].as_object().into_iter().flatten() {
                let described = schema.get("description").is_some() || schema.get("$ref").is_some();
                assert!(described, "{name}.{field} has no description");
            }
        }
    }
}
