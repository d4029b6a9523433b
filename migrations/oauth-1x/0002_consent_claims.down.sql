drop table consent_claims;
