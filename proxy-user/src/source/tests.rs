//! What the fuzz tests of both sources share. They run on the stable compiler, and `SHUNT_FUZZ`
//! says how many executions there are.

pub(super) mod mutate;
