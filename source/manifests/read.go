package manifests

import "github.com/weir-net/weir/policy"

// Read returns the objects of the manifests in the texts. Errors and problems name a text by its key. The error names
// each document that can't be parsed. If another part can't be read, the effect is the same as when the agent reads a
// directory: for example, a policy with a wrong field isolates the pods that it selects, and allows nothing.
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
