package manifests

import "github.com/weir-net/weir/policy"

// Read returns the objects of the manifests in the texts. The key of a text is its name in errors and problems.
// A part that can't be read is a problem, and has the same effect as in a Dir. The error names each document
// that can't be parsed.
func Read(texts map[string][]byte) (policy.Objects, error) {
	d := &Dir{IgnoreBroken: true, files: map[string]*file{}}
	for name, text := range texts {
		f := &file{}
		f.update(parse(text))
		d.files[name] = f
	}
	all, err := d.merge()
	if all == nil {
		return policy.Objects{}, err
	}
	return *all, err
}
