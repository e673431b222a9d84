package policy

import (
	"strconv"
	"strings"
)

// How Kubernetes' controllers name pods.
const (
	// hashAlphabet is what hashes and random endings are made of (k8s.io/apimachinery/pkg/util/rand: no vowels, and
	// no 0, 1 and 3).
	hashAlphabet = "bcdfghjklmnpqrstvwxz2456789"
	digits       = "0123456789"
	// randomLength is how many random letters stand behind a generateName, which is cut to maxGenerated before
	// (k8s.io/apiserver/pkg/storage/names).
	randomLength = 5
	maxGenerated = 58
	// maxHash is the length of a pod template's hash at its longest: 32 bits as a decimal number, each digit replaced
	// by a letter (k8s.io/kubernetes/pkg/controller, ComputeHash). Times and versions have no more digits either.
	maxHash = 10
)

// named is what the name of a workload's pod tells.
type named struct {
	word  string // the hash of a Deployment's template, the time of a CronJob's job, a DeploymentConfig's version
	whole bool   // the word was not cut off
	index string // of an indexed job's pod
}

// read takes the name of a generated pod apart: what the controller calls the pod, then five random letters.
func (w Workload) read(name string) (n named, ok bool) {
	if len(name) <= randomLength {
		return named{}, false
	}
	base, random := name[:len(name)-randomLength], name[len(name)-randomLength:]
	if len(base) > maxGenerated || strings.Trim(random, hashAlphabet) != "" {
		return named{}, false
	}
	cut := len(base) == maxGenerated // or just as long as it may be
	switch {
	case w.Indexed:
		// podGenerateNameWithIndex (k8s.io/kubernetes/pkg/controller/job) cuts the job's name and keeps the index.
		job, number, ok := cutLast(strings.TrimSuffix(base, "-"))
		if _, isNumber := ordinal(number); !ok || !isNumber || !strings.HasSuffix(base, "-") {
			return named{}, false
		}
		n.index, base = number, job
	case strings.HasSuffix(base, "-") && !cut:
		base = strings.TrimSuffix(base, "-")
	case !cut:
		return named{}, false
	}
	word := map[string]string{"Deployment": hashAlphabet, "CronJob": digits, "DeploymentConfig": digits}[w.Kind]
	if n.word, n.whole, ok = after(base, w.Name, word, cut, !w.Indexed); !ok {
		return named{}, false
	}
	return n, true
}

// after reads "NAME" or, if the word has an alphabet, "NAME-WORD". Where the text may be cut off it may end anywhere,
// and it may end with the dash that stands behind it if there is one.
func after(text, name, alphabet string, cut, dash bool) (word string, whole, ok bool) {
	if alphabet != "" {
		name += "-"
	}
	if cut && len(text) <= len(name) {
		return "", alphabet == "", strings.HasPrefix(name, text) // the name is known, however it is cut
	}
	word, ok = strings.CutPrefix(text, name)
	whole = !cut
	if cut && dash && strings.HasSuffix(word, "-") {
		word, whole = strings.TrimSuffix(word, "-"), true
	}
	if alphabet == "" {
		return "", true, ok && word == ""
	}
	return word, whole, ok && word != "" && len(word) <= maxHash && strings.Trim(word, alphabet) == ""
}

// cutLast cuts around the last dash.
func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndex(s, "-")
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// ordinal reads a number as Kubernetes writes it: without sign or leading zeros, of 32 bits.
func ordinal(s string) (int, bool) {
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}
