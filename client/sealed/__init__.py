"""What a site does in a sealed sum: it seals its own numbers, and adds up those of a cohort."""
