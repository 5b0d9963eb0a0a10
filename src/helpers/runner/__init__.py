"""Which notebooks of a study are executed, in what order, on which machines; its report and its commands."""
